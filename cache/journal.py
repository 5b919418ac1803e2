"""Atomic commits into one HDF5 file, which HDF5 itself does not offer.

A kill in the middle of HDF5's own flush leaves a file that may not open again. Three ways out were weighed: one file
per segment joined at the end (appending one clip would copy the whole cache), SWMR (no new datasets while writing, a
flag to clear by hand after a crash), and a redo journal as databases use it. The journal wins: HDF5 writes into an
`Overlay` in memory; a commit then

1. appends what lies beyond the old end of the file, which no reader looks at, and flushes it to the disk,
2. writes the few kilobytes that change inside the old file to `NAME.h5.journal`, renamed into place: the commit,
3. applies them and deletes the journal.

Whoever opens the cache next repeats step 3 where a journal is left, so a crash loses at most the segment in flight.
"""

import fcntl
import io
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

_MAGIC = b"EMIJRNL1"
Extent = tuple[int, bytes]


def journal_path(path: Path) -> Path:
    """The journal's place beside the file it belongs to."""
    return path.with_name(path.name + ".journal")


class Overlay(io.RawIOBase):
    """A file whose writes stay in memory; give it to `h5py.File` in place of a path.

    Never raises from a write, since HDF5 cannot pass an exception on cleanly: disk errors surface in `commit`.
    """

    def __init__(self, base: BinaryIO) -> None:
        self._base = base
        self._base_size = self._size = os.fstat(base.fileno()).st_size
        self._position = 0
        self._extents: list[Extent] = []

    def readinto(self, buffer: Any) -> int:
        """Fill from the file, then from the writes in their order."""
        view = memoryview(buffer).cast("B")
        start, count = self._position, min(len(view), max(0, self._size - self._position))
        view[:count] = bytes(count)
        if start < self._base_size:
            stored = os.pread(self._base.fileno(), min(count, self._base_size - start), start)
            view[: len(stored)] = stored
        for offset, data in self._extents:
            low, high = max(offset, start), min(offset + len(data), start + count)
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]
        self._position += count
        return count

    def write(self, data: Any) -> int:
        """Keep a copy of the bytes."""
        copy = bytes(data)
        self._extents.append((self._position, copy))
        self._position += len(copy)
        self._size = max(self._size, self._position)
        return len(copy)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; offsets are those of the file with the writes applied."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Current offset in bytes."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size; HDF5 calls it to announce the end of its space."""
        self._size = self._position if size is None else size
        return self._size

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def commit(self, path: Path) -> None:
        """Make the writes part of the file at `path` in one atomic step, and start anew on top of it.

        Raises:
            OSError: disk full or not writable; the file then still holds what it held before.
        """
        end = self._base_size
        inside = [(o, d[: end - o]) for o, d in self._extents if o < end]
        beyond = [(max(o, end), d[max(0, end - o) :]) for o, d in self._extents if o + len(d) > end]
        _write_extents(self._base, beyond)
        os.ftruncate(self._base.fileno(), max(self._size, end))
        os.fsync(self._base.fileno())
        _write_journal(journal_path(path), inside)
        replay(path, self._base)
        self._base_size = self._size = os.fstat(self._base.fileno()).st_size
        self._extents.clear()


def replay(path: Path, file: BinaryIO) -> None:
    """Apply and delete a journal that is left beside `path`; harmless to repeat. The caller holds the lock."""
    journal = journal_path(path)
    if not journal.exists():
        return
    _write_extents(file, _read_journal(journal))
    os.fsync(file.fileno())
    journal.unlink()


def recover(path: Path) -> None:
    """Finish a commit that a crash cut short, waiting for a live writer to end its own."""
    if not journal_path(path).exists():
        return
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        replay(path, file)


def _write_extents(file: BinaryIO, extents: Iterable[Extent]) -> None:
    for offset, data in extents:
        view = memoryview(data)
        while view:
            written = os.pwrite(file.fileno(), view, offset)
            view, offset = view[written:], offset + written


def _write_journal(journal: Path, extents: list[Extent]) -> None:
    head = json.dumps([(offset, len(data)) for offset, data in extents]).encode()
    body = b"".join([head, *(data for _, data in extents)])
    record = _MAGIC + struct.pack("<II", google_crc32c.value(body), len(head)) + body
    temporary = journal.with_name(journal.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(record)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(journal)


def _read_journal(journal: Path) -> list[Extent]:
    record = journal.read_bytes()
    crc, head_size = struct.unpack_from("<II", record, len(_MAGIC))
    body = record[len(_MAGIC) + 8 :]
    if not record.startswith(_MAGIC) or google_crc32c.value(body) != crc:
        raise OSError(f"{journal} is damaged; restore it and its cache from a copy")
    extents, at = [], head_size
    for offset, size in json.loads(body[:head_size]):
        extents.append((offset, body[at : at + size]))
        at += size
    return extents
