"""The interface of a modality: how a source becomes an item that backbones take, and what that item costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cache.sources import Medium

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from extract.backbones.protocol import Identity
    from extract.settings import DecodeOptions, ExtractSettings
    from extract.sources import Source


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Item:
    """A decoded clip; each modality adds its content.

    Attributes:
        seconds: length of the medium before the cut; NaN where it is unknown.
        track: which track was decoded where the file has several, else "".
        cut_off: why the file is incomplete, where that was allowed, else "".
        medium: describes the file, where that was asked for.
        long: whether the clip is too long to hold. The item is then empty; `Modality.record` reads the clip.
        remark: what else the user should know of how it was read, else "".
        missing: share of frames in which nothing was found though all are valid, as with black pictures for faces.
        others: number of other people that the clip shows.
    """

    seconds: float
    track: str = ""
    cut_off: str = ""
    medium: Medium | None = None
    long: bool = False
    remark: str = ""
    missing: float = 0.0
    others: int = 0


class Recording(Protocol):
    """A long clip that is read in blocks. `seconds` and `cut_off` (see `Item`) are set after the last one.

    `times` and `valid` are those of its rows (see `extract.backbones.Features`), or None.
    """

    seconds: float
    cut_off: str
    times: "NDArray[Any] | None"
    valid: "NDArray[np.bool_] | None"

    def __iter__(self) -> "Iterator[NDArray[Any]]":
        """Yield the content in blocks of a few seconds.

        Raises:
            MediaError: the file cannot be read, with the reason.
        """


Read = Callable[["Source", "float | None", "DecodeOptions"], Any]
"""Reads a source up to a number of seconds (None: all of it)."""


class Modality(Protocol):
    """What one kind of backbone takes. A clip is read, in a process of its own, then finished, then computed.

    Attributes:
        name: key in `MODALITIES`.
        medium: what it is read from, in words.
        cost_per_second: cost of a second of a clip, in the unit of `cost`.
        window_seconds: limit on clips x longest clip of a window (`extract.plan`).
        longest_held: seconds of the longest clip that is held whole where clips are not cut.
        bytes_per_second: memory of a backbone that computes a second of a long clip whole, on the safe side.
        packages: whose versions are recorded in a cache.
        marks: whether a frame may be one in which nothing was found, as without a face; a clip has one frame at least.
    """

    name: str
    medium: str
    cost_per_second: int
    window_seconds: float
    longest_held: float
    bytes_per_second: int
    packages: tuple[str, ...]
    marks: bool

    def hop_seconds(self, identity: "Identity", settings: "ExtractSettings") -> float | None:
        """Return the time from one frame of a backbone to the next; None where frames have times of their own."""

    def fingerprint(self, settings: "ExtractSettings") -> Mapping[str, Any]:
        """Return everything that changes a decoded number."""

    def reader(self) -> Read:
        """Import what decoding needs, and return the function that reads a source.

        A process is ready when this returns; what takes long to import, as torch, is imported by the first clip.
        What it returns is sent between processes, and becomes an `Item` in `finish`. It raises `MediaError` for a
        source that cannot be read.
        """

    def finish(self, read: Any, max_seconds: float | None) -> Item:
        """Turn what was read into an item. This runs in a thread, so it should release Python's lock."""

    def record(self, item: Any, source: "Source", options: "DecodeOptions") -> Recording:
        """Open a long clip, of which the reader gave `item`."""

    def cost(self, item: Any) -> int:
        """Return the size of an item, by which batches are planned."""

    def inputs(self, items: Sequence[Any], device: "torch.device") -> Sequence[Any]:
        """Move items to the device, as the backbone takes them."""

    def stated_seconds(self, source: "Source", options: "DecodeOptions") -> float | None:
        """Return the length that a file's header states, or None. Nothing is decoded."""
