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

A journal may also outlive its file: a copy is restored over it, another cache is moved there, or it is deleted and
made anew. So a journal says which file it is for, in a way that holds however much of step 3 was done: the size after
step 1, the old bytes beside the new, and a checksum of what step 1 appended. It belongs to a file of that size in which
every byte to be written is still the old one or already the new one. Where all are old, the appended bytes have to
match, too: they may be another attempt's, and nothing is lost with a commit that never returned. Where some are new,
nobody else can have written them, and the rest has to follow even if the appended bytes were damaged since; whoever
reads those finds that. Readers pass over a journal that does not belong, and writers, who hold the lock, delete it.
"""

import contextlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from cache.system.disk import read_at, sync, write_at

_MAGIC = b"EMIJRNL2"
_HEAD = struct.Struct("<8sII")
"""Magic, CRC-32C of the rest, size of the JSON that comes first in it."""
_CHUNK_BYTES = 1 << 20
"""Read at a time for a checksum."""
_STRING_HEAP = b"GCOL\x01"
"""Signature and version of where HDF5 keeps strings of variable length, which attributes are: the only metadata without
a checksum. It refuses other versions itself."""
_HEAP_OBJECT = struct.Struct("<HHIQ")
"""Number, references, reserved, size; number 0 is what is free, its head included."""
_reading_strings: ContextVar[bool] = ContextVar("reading_strings", default=False)
Extent = tuple[int, bytes]
"""Offset, and the bytes from there on."""


def journal_path(path: Path) -> Path:
    """The journal's place beside the file it belongs to."""
    return path.with_name(path.name + ".journal")


@contextlib.contextmanager
def reading_strings() -> Iterator[None]:
    """Around reads of attributes: check each heap of strings before HDF5 sees it.

    Only there, as HDF5 does not say what it reads for, and the numbers of a data set may look like anything.

    Raises:
        OSError: a heap is damaged in a way over which HDF5 would run for ever.
    """
    token = _reading_strings.set(True)
    try:
        yield
    finally:
        _reading_strings.reset(token)


class Overlay(io.RawIOBase):
    """A file whose writes stay in memory; give it to `h5py.File` in place of a path.

    Never raises from a write, since HDF5 cannot pass an exception on cleanly: disk errors surface in `commit`.

    Args:
        descriptor: the open file below; the caller closes it.
        extents: bytes that lie over the file from the start (`pending`).
        check: called after each read; what it raises, the read raises.
    """

    def __init__(
        self, descriptor: int, extents: Iterable[Extent] = (), check: Callable[[], object] = lambda: None
    ) -> None:
        self._base, self._check = descriptor, check
        self._base_size = self._size = os.fstat(descriptor).st_size
        self._position = 0
        self._extents: list[Extent] = list(extents)

    def readinto(self, buffer: Any) -> int:
        """Fill from the file, then from the writes in their order."""
        view = memoryview(buffer).cast("B")
        content = self.read_at(self._position, len(view))
        self._check()
        if _reading_strings.get() and content.startswith(_STRING_HEAP):
            _check_string_heap(content)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def read_at(self, start: int, count: int) -> bytearray:
        """Up to `count` bytes from an offset, without moving."""
        content = bytearray(min(count, max(0, self._size - start)))
        if start < self._base_size:
            stored = read_at(self._base, min(len(content), self._base_size - start), start)
            content[: len(stored)] = stored
        self._lay_over(content, start)
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
            OSError: disk full or not writable, or someone took the journal away; the file then still holds what it
                held before, unless a journal is left, which the next writer applies.
        """
        end, place = self._base_size, journal_path(path)
        beyond = [(max(o, end), d[max(0, end - o) :]) for o, d in self._extents if o + len(d) > end]
        try:
            _write_extents(self._base, beyond)
            os.ftruncate(self._base, max(self._size, end))
            os.fsync(self._base)
            left = self._journal()
            _write_journal(place, left)
        except OSError:
            if not place.exists():
                os.ftruncate(self._base, end)  # a full disk needs the room
            raise
        if not place.exists():
            raise OSError(f"{place} vanished before it was applied")
        left.apply(place, self._base)
        self._base_size = self._size = os.fstat(self._base).st_size
        self._extents.clear()

    def _journal(self) -> "_Journal":
        """What changes inside the old file, each byte once: written twice, it would for a moment be neither."""
        end, changes = self._base_size, []
        for low, high in _joined((o, min(o + len(d), end)) for o, d in self._extents if o < end):
            old = read_at(self._base, high - low, low)
            new = bytearray(old)
            self._lay_over(new, low)
            changes.append((low, old, bytes(new)))
        size = os.fstat(self._base).st_size
        return _Journal(size=size, end=end, appended_crc32c=_crc32c(self._base, end, size), changes=changes)

    def _lay_over(self, content: bytearray, start: int) -> None:
        """Put the writes, in their order, over bytes that lie at `start`."""
        for offset, data in self._extents:
            low, high = max(offset, start), min(offset + len(data), start + len(content))
            if low < high:
                content[low - start : high - start] = data[low - offset : high - offset]


@dataclass(frozen=True, kw_only=True)
class _Journal:
    """The part of a commit that is inside the old file, and what the file looks like that it is for."""

    size: int
    """Of the file, once the rest of the commit was appended."""
    end: int
    """Of the file before."""
    appended_crc32c: int
    """Of the bytes from `end` to `size`."""
    changes: list[tuple[int, bytes, bytes]]
    """(offset, old bytes, new bytes), none of which overlap."""

    def belongs_to(self, descriptor: int) -> bool:
        """Whether this is for the file as it is; the docstring of the module says why this is the rule."""
        if os.fstat(descriptor).st_size != self.size:
            return False
        begun = False
        for offset, *versions in self.changes:
            stored = read_at(descriptor, len(versions[0]), offset)
            if len(stored) != len(versions[0]):
                return False
            now, old, new = (np.frombuffer(version, np.uint8) for version in (stored, *versions))
            changed = now != old
            if np.any(changed & (now != new)):
                return False
            begun = begun or bool(changed.any())
        return begun or _crc32c(descriptor, self.end, self.size) == self.appended_crc32c

    def extents(self) -> list[Extent]:
        """What is to be written."""
        return [(offset, new) for offset, _, new in self.changes]

    def apply(self, place: Path, descriptor: int) -> None:
        """Write to the file, and delete this from its place."""
        _write_extents(descriptor, self.extents())
        os.fsync(descriptor)
        place.unlink()


def replay(path: Path, descriptor: int) -> None:
    """Apply and delete a journal that is left beside `path`; harmless to repeat. The caller holds the lock.

    One that does not belong to the file is deleted only.

    Raises:
        OSError: the journal is damaged, or the disk.
    """
    place = journal_path(path)
    try:
        left = _read_journal(place)
    except FileNotFoundError:
        return
    if left.belongs_to(descriptor):
        left.apply(place, descriptor)
    else:
        place.unlink()


def pending(path: Path, descriptor: int) -> list[Extent]:
    """What a commit that was cut short, or is under way, has still to apply to the open file; nothing where none is.

    Raises:
        OSError: the journal is damaged.
    """
    try:
        left = _read_journal(journal_path(path))
    except FileNotFoundError:
        return []
    return left.extents() if left.belongs_to(descriptor) else []


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
            written = write_at(descriptor, view, offset)
            view, offset = view[written:], offset + written


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (low, high) sorted, with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def _crc32c(descriptor: int, start: int, end: int) -> int:
    """Checksum of a part of a file."""
    crc = 0
    for at in range(start, end, _CHUNK_BYTES):
        crc = google_crc32c.extend(crc, read_at(descriptor, min(_CHUNK_BYTES, end - at), at))
    return crc


def _write_journal(place: Path, left: _Journal) -> None:
    changes = [(offset, len(new)) for offset, _, new in left.changes]
    head = json.dumps([left.size, left.end, left.appended_crc32c, changes]).encode()
    body = b"".join([head, *(part for _, old, new in left.changes for part in (old, new))])
    record = _HEAD.pack(_MAGIC, google_crc32c.value(body), len(head)) + body
    temporary = place.with_name(place.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    sync(place.parent)  # the name must be on the disk before the first byte inside the old file changes


def _read_journal(place: Path) -> _Journal:
    record = place.read_bytes()
    try:
        magic, crc, head_size = _HEAD.unpack_from(record)
        body = record[_HEAD.size :]
        if magic != _MAGIC or google_crc32c.value(body) != crc:
            raise ValueError
        size, end, appended_crc32c, ranges = json.loads(body[:head_size])
    except (struct.error, ValueError):
        raise OSError(
            f"{place} is damaged; restore it and its cache from a copy, or delete it if the cache is one already"
        ) from None
    changes, at = [], head_size
    for offset, count in ranges:
        changes.append((offset, body[at : at + count], body[at + count : at + 2 * count]))
        at += 2 * count
    return _Journal(size=size, end=end, appended_crc32c=appended_crc32c, changes=changes)
