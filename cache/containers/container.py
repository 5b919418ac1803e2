"""What a storage container must do, the segments that it holds, and the lock of its writers."""

import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheLockedError
from cache.format import Array


class Rows(Protocol):
    """An array that may lie elsewhere: rows are asked for when they are written. NumPy arrays are `Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> Any:
        """As NumPy has it."""

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class NewSegment:
    """A segment to be written: its name, arrays by name (`ids` as an object array of str) and attributes."""

    name: str
    arrays: Mapping[str, Rows]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentIndex:
    """The clips of one segment.

    Attributes:
        name: of the segment.
        attributes: as stored with it: clips, frames, fingerprint_sha256, index_crc32c, replaces.
        ids: clip ids.
        offsets: (clips + 1,) int64 rows of `frames`.
        seconds: (clips,) float64 lengths of the media.
        checksums: (clips,) uint32 CRC-32C of each clip's bytes.
        places: where the container keeps the segment's large arrays, if it needs to know: array -> [offset, shape].
    """

    name: str
    attributes: Mapping[str, Any]
    ids: Sequence[str]
    offsets: NDArray[np.int64]
    seconds: NDArray[np.float64]
    checksums: NDArray[np.uint32]
    places: Mapping[str, Any]


def segment_name() -> str:
    """Return a new name that sorts by time, and is unique across processes and machines."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}"


def is_segment_name(name: str) -> bool:
    """Return whether `segment_name` makes such names; what has another one in a cache is not emi's, and stays."""
    return re.fullmatch(r"[0-9]{20}-[0-9a-f]{8}", name) is not None


class Container(Protocol):
    """Segments in one place. Every method opens what it needs; `close` lets go of it.

    Writing a segment is atomic: after a crash at any moment a segment is there whole or not at all.
    """

    path: str
    one_writer: bool
    """Whether a second writer is refused while one writes."""
    remote: bool
    """Whether reading waits for a network, so that many reads at once pay."""

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no cache yet."""

    def create(self, attributes: Mapping[str, Any], extras: Mapping[str, Array]) -> None:
        """Make an empty cache with these root attributes and extra arrays, unless one appeared meanwhile."""

    def read_extras(self) -> dict[str, Array]:
        """The arrays that the cache was created with beside its segments."""

    def lock(self, *, alone: bool = False) -> None:
        """Take the right to write, or to write alone; raises CacheLockedError where another writer is in the way."""

    def segment_names(self, known: Collection[str] = ()) -> list[str]:
        """Committed segments, sorted by name; those in `known` were seen committed before."""

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array], dict[str, Any]]:
        """Attributes, index arrays (`format.INDEX_ARRAYS`) and `SegmentIndex.places` of one segment."""

    def read_blocks(self) -> list[bytes]:
        """The blocks of `cache.index`."""

    def write_block(self, name: str, block: bytes) -> None:
        """Store a block."""

    def read_into(self, segment: SegmentIndex, array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        """Fill C-contiguous arrays with rows of one of a segment's arrays, each from its start on."""

    def write_segment(self, segment: NewSegment) -> None:
        """Write and commit one segment."""

    def rewrite(self, replacements: Sequence[tuple[Collection[str], NewSegment | None]]) -> None:
        """Put new segments in the place of old ones, or nothing; the lock is held alone. Blocks go with the old.

        Whatever `problems` finds with the whole is mended.
        """

    def unsealed(self) -> list[str]:
        """Names of the segments that are committed, and that `seal` has yet to bring to the path."""
        return []

    def seal(self) -> bool:
        """Finish writing, where a container has to; returns whether it wrote anything."""
        return False

    def problems(self, segment: SegmentIndex | None = None) -> list[str]:
        """What is wrong with stored bytes that no clip's checksum covers: of the whole, or of one segment."""

    def stored(self) -> tuple[int, int]:
        """(files or objects, bytes) that the cache takes."""

    def leftovers(self) -> tuple[int, int]:
        """(number, bytes) of segments that a crash left unfinished, or that one of these writes at the moment."""

    def close(self) -> None:
        """Release file handles and the writer's lock."""


def lock_folder(folder: Path, before: str, after: str, *, alone: bool) -> object:
    """Join the writers of a folder, or have it alone, until the returned lock is dropped.

    Raises:
        CacheLockedError: another is in the way; says which process, between the words before and after it.
    """
    from cache.system.locks import FolderLock, HeldError  # takes 50 ms, and readers lock nothing

    lock = FolderLock(folder)
    try:
        lock.take(alone=alone)
    except HeldError as error:
        raise CacheLockedError(f"{before}{error}{after}") from None
    return lock
