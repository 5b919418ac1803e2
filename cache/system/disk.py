"""Read, write and flush files by position; where the system lacks POSIX's calls, by seeking."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import google_crc32c

_CHECKED_BYTES = 1 << 20
"""Read and checked at a time: what fits in the processor's cache."""
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


def crc32c_at(descriptor: int, start: int, end: int) -> int:
    """Return the CRC-32C of a part of a file; not through a memory map, which kills where the file is cut."""
    crc = 0
    for offset in range(start, end, _CHECKED_BYTES):
        crc = google_crc32c.extend(crc, read_at(descriptor, min(_CHECKED_BYTES, end - offset), offset))
    return crc


def reserve(descriptor: int, size: int) -> None:
    """Give a file a size, and its room on the disk, so that a memory map of it never lacks any.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    at = os.lseek(descriptor, 0, os.SEEK_END)
    while at < size:
        at += os.write(descriptor, bytes(min(1 << 20, size - at)))


def sync(path: str | os.PathLike[str]) -> None:
    """Flush a file, or the names in a folder, to the disk; Windows does so for files that may be written only."""
    windows = os.name == "nt"
    if windows and os.path.isdir(path):
        return
    descriptor = open_binary(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def measured(place: Path) -> tuple[int, int]:
    """Return the number of files in a folder, or of one file, and their bytes; files that are locks do not count."""
    files = place.rglob("*") if place.is_dir() else [place]
    sizes = [file.stat().st_size for file in files if file.suffix != ".lock" and file.is_file()]
    return len(sizes), sum(sizes)
