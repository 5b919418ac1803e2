"""One torch thread per operation, so that stored bytes do not depend on the number of cores."""

import contextlib
from collections.abc import Iterator

import torch

CPU = torch.device("cpu")


@contextlib.contextmanager
def one_thread_per_operation(device: torch.device = CPU) -> Iterator[None]:
    """Compute each operation on a CPU in one thread, for a while.

    The bytes of a matrix product depend on the number of threads that share it. They also depend on the number of
    threads at the time when the weights were laid out, that is when the backbone was loaded (measured in float32
    through oneDNN). With one thread, machines with any number of cores give the same bytes. The number is that of the
    calling thread, and what threads begin with that start later; both are restored.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
