"""Read the redo journal that an earlier version of emi, killed in the middle of a commit, left beside an HDF5 cache.

That version appended to the file in place: new bytes behind its end, then the few kilobytes that change inside it
written to `NAME.h5.journal` (the commit), then applied. A journal that is left is laid over the file while reading; the
next seal (`cache.containers.hdf5_file`) writes the whole file and removes it.

A journal may outlive its file: a copy is restored over it, or another cache is moved there. It belongs to a file of the
size that it states in which every byte to be changed is still the old one or already the new one. Where all are old,
the appended bytes have to match their checksum too: they may be another attempt's. Any other journal is ignored.
"""

import json
import os
import struct
from pathlib import Path

import google_crc32c

from cache.system.disk import crc32c_at, read_at

_MAGIC = b"EMIJRNL2"
_HEAD = struct.Struct("<8sII")
"""Magic, CRC-32C of the rest, size of the JSON at its beginning."""
Extent = tuple[int, bytes]
"""An offset in the file, and the bytes from there on."""


def journal_path(path: Path) -> Path:
    """Return where the journal of a file lies."""
    return path.with_name(path.name + ".journal")


def pending(path: Path, descriptor: int) -> list[Extent]:
    """Return the bytes to lay over an open file; none where there is no journal, or none that belongs to the file.

    Raises:
        OSError: the journal is damaged.
    """
    place = journal_path(path)
    try:
        record = place.read_bytes()
    except FileNotFoundError:
        return []
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
    for offset, count in ranges:  # (offset, old bytes, new bytes), none of which overlap
        changes.append((offset, body[at : at + count], body[at + count : at + 2 * count]))
        at += 2 * count
    begun = _begun(descriptor, changes) if os.fstat(descriptor).st_size == size else None
    if begun is None or not (begun or crc32c_at(descriptor, end, size) == appended_crc32c):
        return []
    return [(offset, new) for offset, _, new in changes]


def _begun(descriptor: int, changes: list[tuple[int, bytes, bytes]]) -> bool | None:
    """Return whether some of the new bytes are in the file; None where it holds bytes that are neither old nor new."""
    begun = False
    for offset, old, new in changes:
        stored = read_at(descriptor, len(old), offset)
        if len(stored) != len(old) or any(now not in (a, b) for now, a, b in zip(stored, old, new, strict=True)):
            return None
        begun = begun or stored != old
    return begun
