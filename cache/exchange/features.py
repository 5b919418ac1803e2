"""What a file with the features of one clip holds, whatever wrote it."""

from dataclasses import dataclass

from cache.errors import CacheError
from cache.format import Array


class FeatureFileError(CacheError, ValueError):
    """A folder or file does not hold features that can be imported."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The features of one clip as a file has them; `Header.stored` checks their values.

    Attributes:
        frames: (frames, dim) numbers; (0, …) where nothing was found.
        times: (frames, 2) start and end of each frame in seconds; None where the file has none.
        valid: (frames,) bool, whether something was found; None where the file does not say.
        columns: names of the features; none in files of plain numbers.
        tool: that wrote the file, where that is known.
        by_frame: whether the times follow from numbers of frames and the time from one to the next.
        faces: people in the clip, of whom the one who is seen most was taken.
    """

    frames: Array
    times: Array | None = None
    valid: Array | None = None
    columns: tuple[str, ...] = ()
    tool: str = ""
    by_frame: bool = False
    faces: int = 0
