"""The memory of this process: what the C library does with freed blocks, and whether an error says there is none."""

import ctypes

from cache.system.machine import available_cores


def keep_freed_memory() -> None:
    """Let the allocator keep large blocks that are freed, for the next of their kind, instead of giving them back.

    glibc maps every block above 32 MB anew, and the kernel clears each of its pages: on a CPU, a training step of a
    head spent a tenth of its time on that, one of a large backbone a sixth (measured). It holds for the whole process.
    Nothing happens where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows wants a name
        return
    map_max, trim_threshold, arena_max = -4, -1, -8
    mallopt(map_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def give_freed_memory_back() -> None:
    """The opposite of `keep_freed_memory`, for work that has too little memory rather than time.

    Blocks of 1 MB and more go back when they are freed. With glibc's own limit, 32 MB, they leave holes that stay: of a
    model split over two processes, gathered layers of 12 MB made a process as large as the whole model did, and with
    this one a third smaller (measured).
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # Windows wants a name
        return
    map_max, trim_threshold, map_threshold, arena_max = -4, -1, -3, -8
    mallopt(map_max, 65536)
    mallopt(map_threshold, 1 << 20)
    mallopt(trim_threshold, 2 << 20)
    mallopt(arena_max, 8 * available_cores())
    trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated; torch's are known by name, without importing it."""
    signs = ("allocate memory", "out of memory", "ALLOC_FAILED")  # torch's on a CPU, CUDA's, and its libraries'
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
        return True
    return any(kind.__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError") for kind in type(error).__mro__)
