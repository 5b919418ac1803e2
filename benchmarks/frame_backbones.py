"""Speed of the backbones for labels per frame, VGGish and IResNet-50, with random weights of the published sizes:

    python benchmarks/frame_backbones.py [--quick] [--json FILE]

VGGish gives 25 rows per second of sound. Its front end computes each spectrum once; the row beside it computes the
spectra of one example at a time, as its published code does. A share of the GEMM limit is what a backbone's products
reach of (954, 1024) @ (1024, 4096) with the weight packed once, in as many threads. A share or a ratio is the median
over pairs of calls one right after the other, because a shared machine changes its speed.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # this file's folder holds files that are named like packages

import emi  # noqa: F401 - before torch: it sets how OpenMP's threads wait

# isort: split
import torch
from torch import nn

from benchmarks._gemm import beside_products, on_every_core
from benchmarks._machine import header_line
from benchmarks._timing import figure, in_pairs
from benchmarks.gpu_parts.frame_backbones import operations
from cache.system.machine import available_cores, bfloat16_unit
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.iresnet.encoder import IResNetBackbone
from extract.backbones.iresnet.network import IResNet
from extract.backbones.precision import DTYPES
from extract.backbones.vggish.encoder import SAMPLES, VggishBackbone
from extract.backbones.vggish.log_mel import LogMel
from extract.backbones.vggish.network import Vggish
from extract.threads import one_thread_per_operation

CPU = torch.device("cpu")
PRODUCT = 954, 1024, 4096
"""Rows, inputs and outputs of the product that is the limit."""
SECONDS, CROPS, ROWS = 10.0, 60, 25
"""Of sound, and crops, in each thread; rows per second of sound."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little sound, few crops, one pair")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    seconds, crops, pairs = (0.4, 2, 1) if options.quick else (SECONDS, CROPS, 5)
    torch.manual_seed(0)
    with torch.inference_mode(), one_thread_per_operation():
        rows = [front_end(seconds, pairs)]
        for precision in ("fp32", "bf16") if bfloat16_unit() else ("fp32",):
            rows += [of_vggish(precision, seconds, pairs), of_iresnet(precision, crops, pairs)]
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{header_line()}, torch {torch.__version__}, {available_cores()} threads of one core; load before {load}")
    for row in rows:
        print("  ".join(f"{key} {figure(value) if isinstance(value, float) else value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def front_end(seconds: float, pairs: int) -> dict[str, Any]:
    """Time the spectra of all rows, shared and one example at a time."""
    log_mel, samples = LogMel(CPU), torch.rand(round(16_000 * seconds) + SAMPLES) * 2 - 1
    starts = range(0, round(16_000 * seconds), 16_000 // ROWS)

    def one_by_one() -> None:
        for start in starts:
            log_mel(samples[start : start + SAMPLES])

    def shared() -> None:
        spectra = log_mel(samples)
        points = torch.tensor(starts)[:, None] // 160 + torch.arange(96)
        for some in points.split(8):
            spectra[some]

    times = in_pairs(one_by_one, shared, pairs)
    return {
        "name": "VGGish's front end, one thread",
        "x real time": seconds / statistics.median(own for _, own in times),
        "times one STFT per example": statistics.median(other / own for other, own in times),
    }


def of_vggish(precision: str, seconds: float, pairs: int) -> dict[str, Any]:
    """Time sound to rows."""
    network = Vggish(last_relu=True).eval()
    backbone = VggishBackbone(network, 1 / ROWS, CPU, DTYPES[precision])
    sound = torch.rand(round(16_000 * seconds)) * 2 - 1
    examples = round(seconds * ROWS)
    work = examples * operations(network, torch.zeros(1, 96, 64))
    return {
        "name": f"VGGish, {precision}",
        **figures(lambda: backbone([sound]), work, precision, pairs, {"rows/s": examples, "x real time": seconds}),
    }


def of_iresnet(precision: str, crops: int, pairs: int) -> dict[str, Any]:
    """Time crops to embeddings, beside the plain module in channels-last memory and batches of 16."""
    network = IResNet(IResNetConfig(attention="none")).eval()
    dtype = DTYPES[precision]
    backbone = IResNetBackbone(network, CPU, dtype)
    pictures = np.random.default_rng(0).integers(0, 256, (crops, 112, 112, 3), np.uint8)
    work = crops * operations(network, torch.zeros(1, 3, 112, 112))
    network = network.to(dtype, memory_format=torch.channels_last)

    def plain() -> None:
        for part in torch.from_numpy(pictures).split(16):
            images = (part.float() / 127.5 - 1).permute(0, 3, 1, 2).to(dtype)
            nn.functional.normalize(network(images).float())

    def ours() -> None:
        list(backbone.in_blocks([torch.from_numpy(pictures)]))

    times = in_pairs(plain, ours, pairs)
    return {
        "name": f"IResNet-50, {precision}",
        **figures(ours, work, precision, pairs, {"crops/s": crops}),
        "times the plain module, one thread": statistics.median(other / own for other, own in times),
    }


def figures(
    work: Callable[[], object], operations: float, precision: str, pairs: int, amounts: Mapping[str, float]
) -> dict[str, float]:
    """Time a piece of work that every core does at once, and say what that is per second of some amounts."""
    cores = available_cores()
    found = beside_products(on_every_core(work), cores * operations, PRODUCT, DTYPES[precision], pairs, packed=True)
    return {
        **{name: cores * amount / found.seconds for name, amount in amounts.items()},
        "gflops": found.gflops,
        "GEMM gflops": found.limit,
        "percent of GEMM": found.percent,
    }


if __name__ == "__main__":
    main()
