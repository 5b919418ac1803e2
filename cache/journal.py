"""Atomic commits into one HDF5 file, which HDF5 itself does not offer.

A kill in the middle of HDF5's own flush leaves a file that may not open again. Three ways out were weighed: one file
per segment joined at the end (appending one clip would copy the whole cache), SWMR (no new datasets while writing, a
flag to clear by hand after a crash), and a redo journal as databases use it. The journal wins: HDF5 writes into an
`Overlay` in memory; a commit then

1. appends what lies beyond the old end of the file, which no reader looks at, and flushes it to the disk,
2. writes the few kilobytes that change inside the old file to `NAME.h5.journal`, renamed into place: the commit,
3. applies them and deletes the journal.

Where a journal is left, readers see it applied (they read through an `Overlay` of their own and write nothing), and the
next writer repeats step 3. A crash loses at most the segment in flight.
"""

import io
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c

_MAGIC = b"EMIJRNL1"
_HEAD = struct.Struct("<8sII")
"""Magic, CRC-32C of the rest, size of the list of extents."""
_STRING_HEAP = b"GCOL"
"""Where HDF5 keeps strings of variable length, which attributes are: the only metadata without a checksum."""
_HEAP_OBJECT = struct.Struct("<HHIQ")
"""Number, references, reserved, size; number 0 is what is free, its head included."""
Extent = tuple[int, bytes]


def journal_path(path: Path) -> Path:
    """The journal's place beside the file it belongs to."""
    return path.with_name(path.name + ".journal")


class Overlay(io.RawIOBase):
    """A file whose writes stay in memory; give it to `h5py.File` in place of a path.

    Never raises from a write, since HDF5 cannot pass an exception on cleanly: disk errors surface in `commit`.

    Args:
        descriptor: the open file below; the caller closes it.
        extents: bytes that lie over the file from the start (`pending`).
    """

    def __init__(self, descriptor: int, extents: Iterable[Extent] = ()) -> None:
        self._base = descriptor
        self._base_size = self._size = os.fstat(descriptor).st_size
        self._position = 0
        self._extents: list[Extent] = list(extents)

    def readinto(self, buffer: Any) -> int:
        """Fill from the file, then from the writes in their order."""
        view = memoryview(buffer).cast("B")
        content = self.read_at(self._position, len(view))
        if content[:4] == _STRING_HEAP:
            _check_string_heap(content)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def read_at(self, start: int, count: int) -> bytearray:
        """Up to `count` bytes from an offset, without moving."""
        content = bytearray(min(count, max(0, self._size - start)))
        if start < self._base_size:
            stored = os.pread(self._base, min(len(content), self._base_size - start), start)
            content[: len(stored)] = stored
        for offset, data in self._extents:
            low, high = max(offset, start), min(offset + len(data), start + len(content))
            if low < high:
                content[low - start : high - start] = data[low - offset : high - offset]
        return content

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
        try:
            _write_extents(self._base, beyond)
            os.ftruncate(self._base, max(self._size, end))
            os.fsync(self._base)
            _write_journal(journal_path(path), inside)
        except OSError:
            if not journal_path(path).exists():
                os.ftruncate(self._base, end)  # a full disk needs the room
            raise
        replay(path, self._base)
        self._base_size = self._size = os.fstat(self._base).st_size
        self._extents.clear()


def replay(path: Path, descriptor: int) -> None:
    """Apply and delete a journal that is left beside `path`; harmless to repeat. The caller holds the lock."""
    if not journal_path(path).exists():
        return
    _write_extents(descriptor, pending(path))
    os.fsync(descriptor)
    journal_path(path).unlink()


def pending(path: Path) -> list[Extent]:
    """What a commit that was cut short, or is under way, has still to apply to the file.

    Raises:
        OSError: the journal is damaged.
    """
    try:
        return _read_journal(journal_path(path))
    except FileNotFoundError:
        return []


def _check_string_heap(content: bytearray) -> None:
    """Refuse a heap over whose objects HDF5 would run for ever: it takes a size of zero for a step.

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


def _write_extents(descriptor: int, extents: Iterable[Extent]) -> None:
    for offset, data in extents:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written


def _write_journal(journal: Path, extents: list[Extent]) -> None:
    head = json.dumps([(offset, len(data)) for offset, data in extents]).encode()
    body = b"".join([head, *(data for _, data in extents)])
    record = _HEAD.pack(_MAGIC, google_crc32c.value(body), len(head)) + body
    temporary = journal.with_name(journal.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(journal)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(journal.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must be on the disk before the first byte inside the old file changes
    finally:
        os.close(folder)


def _read_journal(journal: Path) -> list[Extent]:
    record = journal.read_bytes()
    try:
        magic, crc, head_size = _HEAD.unpack_from(record)
        body = record[_HEAD.size :]
        intact = magic == _MAGIC and google_crc32c.value(body) == crc
        head = json.loads(body[:head_size]) if intact else []
    except (struct.error, ValueError):
        intact = False
    if not intact:
        raise OSError(f"{journal} is damaged; restore it and its cache from a copy")
    extents, at = [], head_size
    for offset, size in head:
        extents.append((offset, body[at : at + size]))
        at += size
    return extents
