"""The bytes of an HDF5 file as h5py reads them: an old journal laid over them, and heaps of strings checked first."""

import io
import os
import struct
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from cache.containers.old_journal import Extent
from cache.system.disk import read_at

_STRING_HEAP = b"GCOL\x01"
"""Signature and version of the heaps that hold attributes of text: the only metadata without a checksum. HDF5 refuses
other versions itself."""
_HEAP_OBJECT = struct.Struct("<HHIQ")
"""Number, references, reserved, size; number 0 is free space, its head included."""
reading_strings = ContextVar("reading_strings", default=False)
"""Whether attributes are read, and so each heap of strings is checked before HDF5 sees it.

HDF5 does not say what it reads for, and the numbers of a data set may look like a heap.
"""


class Hdf5Bytes(io.RawIOBase):
    """A read-only file to pass to `h5py.File` in place of a path.

    Args:
        descriptor: of the open file; the caller closes it.
        extents: bytes that lie over the file (`cache.containers.old_journal`).
    """

    def __init__(self, descriptor: int, extents: Sequence[Extent] = ()) -> None:
        self._descriptor, self._extents = descriptor, extents
        self._size, self._position = os.fstat(descriptor).st_size, 0

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position.

        Raises:
            OSError: a heap of strings is damaged in a way that would make HDF5 loop for ever.
        """
        view = memoryview(buffer).cast("B")
        content = self.read_at(self._position, len(view))
        if reading_strings.get() and content.startswith(_STRING_HEAP):
            _check_string_heap(content)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def read_at(self, start: int, count: int) -> bytearray:
        """Return up to `count` bytes from an offset, without moving."""
        content = bytearray(read_at(self._descriptor, count, start))
        for offset, data in self._extents:
            low, high = max(offset, start), min(offset + len(data), start + len(content))
            if low < high:
                content[low - start : high - start] = data[low - offset : high - offset]
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        self._position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence] + offset
        return self._position


def _check_string_heap(content: bytearray) -> None:
    """Refuse a heap on whose objects HDF5 would loop for ever: it takes a size of zero for a step.

    Raises:
        OSError: the sizes of the objects do not fill the heap.
    """
    end = int.from_bytes(content[8:16], "little")
    if end > len(content):  # HDF5 reads the first 4 KiB, and then asks for all
        return
    at = 16
    while at + _HEAP_OBJECT.size <= end:
        number, _, _, size = _HEAP_OBJECT.unpack_from(content, at)
        at += size if number == 0 else _HEAP_OBJECT.size + -(-size // 8) * 8
        if at > end or (number == 0 and size < _HEAP_OBJECT.size):
            raise OSError("its heap of strings is damaged")
