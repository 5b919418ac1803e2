"""What a piece of work reaches of the speed of matrix products, each measured in turn with the other."""

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks._timing import in_pairs
from cache.system.machine import available_cores
from extract.backbones.packed_weights import PackedLinear
from extract.threads import one_thread_per_operation

REPEATS = 40
"""Products in each core's turn: a tenth of a second to a second."""


@dataclass(frozen=True)
class BesideProducts:
    """Speed of a piece of work that uses all cores.

    Attributes:
        seconds: that it takes.
        gflops: its GFLOP/s.
        limit: GFLOP/s of the products.
        percent: of the products' rate; the median of the turns, because a shared machine changes its speed.
    """

    seconds: float
    gflops: float
    limit: float
    percent: float


def on_every_core(work: Callable[[], object]) -> Callable[[], None]:
    """Return a call that does a piece of work in a thread per core, with one thread per operation, all at once."""

    def one(_: int) -> None:
        with torch.inference_mode():
            work()

    def run() -> None:
        cores = available_cores()
        with one_thread_per_operation(), ThreadPoolExecutor(cores) as pool:
            list(pool.map(one, range(cores)))

    return run


def beside_products(
    run: Callable[[], object],
    operations: float,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    pairs: int,
    *,
    packed: bool,
) -> BesideProducts:
    """Time a piece of work and products of every core, one right after the other.

    Args:
        run: the work.
        operations: its floating-point operations, in all threads.
        shape: rows, inputs and outputs of the products.
        dtype: of the products.
        pairs: least number of turns.
        packed: whether the products' weight is laid out once, else by every call.
    """
    rows, inputs, outputs = shape
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    product = PackedLinear(weight, None, dtype) if packed else partial(torch.nn.functional.linear, weight=weight)
    products = on_every_core(lambda: [product(x) for _ in range(REPEATS)])
    most = available_cores() * REPEATS * 2 * rows * inputs * outputs
    run()
    times = in_pairs(products, run, pairs)
    seconds = statistics.median(own for _, own in times)
    return BesideProducts(
        seconds,
        operations / seconds / 1e9,
        statistics.median(most / other / 1e9 for other, _ in times),
        100 * statistics.median((operations / own) / (most / other) for other, own in times),
    )
