"""Read, write and flush files by position; where the system lacks POSIX's calls, by seeking."""

import os
import threading
from collections.abc import Sequence

_SEEKING = threading.Lock()
"""Where reading moves the descriptor, one thread at a time may."""


def open_binary(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Return a descriptor; Windows would change line ends without being told not to."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0))


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Read up to `count` bytes from an offset."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def read_into_at(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
    """Fill views of bytes from an offset on, and return the number of bytes read, which may be less than all."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, views, offset)
    content = read_at(descriptor, len(views[0]), offset)
    views[0][: len(content)] = content
    return len(content)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Write from an offset on, and return the number of bytes written, which may be less than all."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def reserve(descriptor: int, size: int) -> None:
    """Give a file a size, and its room on the disk, so that a memory map of it never lacks any.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block, at = bytes(1 << 20), os.fstat(descriptor).st_size
    while at < size:
        at += write_at(descriptor, memoryview(block)[: size - at], at)


def sync(path: str | os.PathLike[str]) -> None:
    """Flush a file, or the names in a folder, to the disk; Windows does so for files that may be written only."""
    if os.name == "nt":
        if os.path.isdir(path):
            return
        descriptor = open_binary(path, os.O_RDWR)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
