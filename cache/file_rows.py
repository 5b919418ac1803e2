"""Copy bytes of a local file into an array: the innermost loop of reading.

Not through a memory map: it is no faster here (8 GB/s both, warm, on a virtual EPYC), and where the file ends before
the map does, the process dies instead of raising.
"""

import os

import numpy as np

from cache.format import Array


def copy_from_file(descriptor: int, offset: int, out: Array) -> None:
    """Fill a C-contiguous array with the bytes at an offset.

    Raises:
        OSError: the file ends before.
    """
    view = memoryview(out.reshape(-1).view(np.uint8).data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise OSError(f"the file ends before byte {offset + len(view)}")
        view, offset = view[count:], offset + count
