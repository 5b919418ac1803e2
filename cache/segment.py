"""A segment of a cache, as it is written and as its index describes it."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
