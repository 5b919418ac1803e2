"""The memory of this process: how much there is, what the C library does with freed blocks, errors for lack of it."""

import contextlib
import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path

from cache.system.machine import available_cores

_TRIM_THRESHOLD, _MAP_THRESHOLD, _MAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""Options of `mallopt`, by their numbers in malloc.h."""


def keep_freed_memory() -> None:
    """Let the allocator keep large blocks that are freed, for the next of their kind, instead of giving them back.

    glibc maps every block above 32 MB anew, and the kernel clears each of its pages: on a CPU, a training step of a
    head spent a tenth of its time on that, one of a large backbone a sixth (measured). It holds for the whole process.
    What is free already goes back first. Nothing happens where the C library is another one.
    """
    _set_limits({_MAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1})


def give_freed_memory_back() -> None:
    """The opposite of `keep_freed_memory`, for work that has too little memory rather than time.

    Blocks of 1 MB and more go back when they are freed. With glibc's own limit, 32 MB, they leave holes that stay: of a
    model split over two processes, gathered layers of 12 MB made a process as large as the whole model did, and with
    this one a third smaller (measured).
    """
    _set_limits({_MAP_MAX: 65536, _MAP_THRESHOLD: 1 << 20, _TRIM_THRESHOLD: 2 << 20, _ARENA_MAX: 8 * available_cores()})


def _set_limits(limits: Mapping[int, int]) -> None:
    """Call glibc's `mallopt` and give back what is free; nothing happens where the C library is another one."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows wants a name
        libc = ctypes.CDLL(None)
        for option, limit in limits.items():
            libc.mallopt(option, limit)
        libc.malloc_trim(0)


def memory_bytes() -> float:
    """Return the memory of this machine or container, infinity where it is unknown."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated; torch's are known by name, without importing it."""
    signs = ("allocate memory", "out of memory", "ALLOC_FAILED")  # torch's on a CPU, CUDA's, and its libraries'
    return (
        isinstance(error, MemoryError)
        or any(sign in str(error) for sign in signs)
        or any(kind.__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError") for kind in type(error).__mro__)
    )
