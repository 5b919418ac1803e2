"""Which media the clips of a cache were made from, so that one that changes under the same id is noticed.

A segment may hold an array `sources`, (clips, 3) int64: size of the medium in bytes, time of its last change in
nanoseconds, and the first 64 bits of a BLAKE2b hash. Rows of zeros are not known. The segment's attribute
`sources_crc32c` guards the array, and says that there is one; readers that do not know it pass over it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.containers.container import Container, SegmentIndex
from cache.format import crc32c

SOURCES, SOURCES_CRC32C = "sources", "sources_crc32c"
REFRESHED = "refreshed"
"""Attribute of a segment whose clips were extracted again: they count before those of the same ids elsewhere."""
HASHED_BYTES = 1 << 20
"""The hash is over the first and the last of so many bytes, and the size: one of a film costs no more than a clip's."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A media file, or a folder of images, at the time when it was read.

    Attributes:
        size: bytes.
        mtime_ns: time of its last change.
        digest: of its content; see `HASHED_BYTES`.
    """

    size: int
    mtime_ns: int
    digest: int

    def changed(self, path: Path) -> bool:
        """Whether the file at `path` has another content; it is read only where its time differs and its size does not.

        A file that is not there, or cannot be read, has not changed.
        """
        try:
            size, mtime_ns = size_and_time(path)
            return size != self.size or (mtime_ns != self.mtime_ns and content_digest(path, size) != self.digest)
        except OSError:
            return False


def medium_of(path: Path) -> Medium | None:
    """Describe a media file; None where it cannot be read."""
    try:
        size, mtime_ns = size_and_time(path)
        return Medium(size, mtime_ns, content_digest(path, size))
    except OSError:
        return None


def content_digest(path: Path, size: int) -> int:
    """Return the hash of a file's content, or of the names and contents in a folder, as a signed 64-bit number."""
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=8)
    if path.is_dir():
        for inner in _files(path):
            digest.update(f"{inner.name!r} {content_digest(inner, inner.stat().st_size)}\0".encode())
        return int.from_bytes(digest.digest(), "little", signed=True)
    with path.open("rb") as file:
        digest.update(file.read(HASHED_BYTES))
        if size > HASHED_BYTES:
            file.seek(max(HASHED_BYTES, size - HASHED_BYTES))
            digest.update(file.read(HASHED_BYTES))
    return int.from_bytes(digest.digest(), "little", signed=True)


def size_and_time(path: Path) -> tuple[int, int]:
    """Return the bytes of a file and the time of its last change in nanoseconds; the sum and the latest of a folder."""
    there = [file.stat() for file in (_files(path) if path.is_dir() else [path])]
    return sum(stat.st_size for stat in there), max((stat.st_mtime_ns for stat in there), default=0)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def to_rows(media: Sequence[Medium | None]) -> NDArray[np.int64]:
    """Lay media out as the array `sources`."""
    rows = [(0, 0, 0) if m is None else (m.size, m.mtime_ns, m.digest) for m in media]
    return np.array(rows, np.int64).reshape(len(rows), 3)


def from_row(row: NDArray[np.int64]) -> Medium | None:
    """Read one row back; None where the medium is not known."""
    return Medium(*row.tolist()) if row.any() else None


def read_sources(container: Container, segment: SegmentIndex) -> NDArray[np.int64]:
    """Read the array of a segment; zeros where it has none.

    Raises:
        Exception: it is missing or damaged; a container may raise anything over damaged bytes.
        ValueError: it does not match its checksum.
    """
    rows = np.zeros((len(segment.ids), 3), np.int64)
    if SOURCES_CRC32C not in segment.attributes:
        return rows
    container.read_into(segment, SOURCES, [0], [rows])
    if crc32c(rows) != segment.attributes[SOURCES_CRC32C]:
        raise ValueError("its sources do not match their checksum")
    return rows
