"""Synthetic feature clips with the lengths of real data sets, cut from one block of noise that fits in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POOL_BYTES = 64 << 20
"""Of noise that clips are cut from: more than a processor's cache, less than a data set."""

Frames = NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data set's shape.

    Attributes:
        name: of the data set.
        clips: how many.
        train: how many of them are its training split.
        dim: features per frame.
        frames: mean, spread, least and most frames of a clip, at 50 Hz.
    """

    name: str
    clips: int
    train: int
    dim: int
    frames: tuple[float, float, int, int]

    def lengths(self) -> NDArray[np.int64]:
        """(clips,) frames of each clip; the least and the most are among them."""
        mean, spread, least, most = self.frames
        lengths = np.random.default_rng(0).normal(mean, spread, self.clips).round().clip(least, most).astype(np.int64)
        lengths[: min(2, self.clips)] = (least, most)[: self.clips]
        return lengths

    def total_bytes(self) -> int:
        """Of all clips' frames."""
        return int(self.lengths().sum()) * self.dim * 2

    def ids(self) -> list[str]:
        """As in Hume-Vidmimic2: five digits."""
        return [f"{i:05d}" for i in range(self.clips)]

    def split(self) -> list[str]:
        """The training clips in the order of storage, drawn at random: splits are seldom neighbours."""
        chosen = np.sort(np.random.default_rng(1).permutation(self.clips)[: self.train])
        return [f"{i:05d}" for i in chosen]


RAVDESS = Case(name="RAVDESS", clips=1200, train=960, dim=1024, frames=(183, 17, 140, 260))
"""1,200 clips of 20 actors, of which 16 train; mean 3.7 s; wav2vec2-large."""
EMI = Case(name="EMI", clips=12_660, train=8072, dim=256, frames=(335, 130, 1, 600))
"""Training and validation splits of Hume-Vidmimic2, cut at 12 s; fewer features, so that it fits in memory thrice."""


class FeatureClips:
    """Pairs of id and (frames, dim) float16, the same in every process."""

    def __init__(self, case: Case) -> None:
        self.dim = case.dim
        self.ids = case.ids()
        self._lengths = case.lengths()
        rows = max(2 * int(self._lengths.max()), POOL_BYTES // (2 * case.dim))
        rng = np.random.default_rng(2)
        bits = np.frombuffer(rng.bytes(2 * rows * case.dim), np.uint16) & 0x83FF | 0x3C00  # from -2 to 2, quickly
        self._pool = bits.view(np.float16).reshape(rows, case.dim)
        self._starts = rng.integers(0, rows - self._lengths + 1)
        self._row = {clip_id: i for i, clip_id in enumerate(self.ids)}

    def __getitem__(self, clip_id: str) -> Frames:
        i = self._row[clip_id]
        return self._pool[self._starts[i] : self._starts[i] + self._lengths[i]]

    def __iter__(self) -> Iterator[tuple[str, Frames]]:
        return ((clip_id, self[clip_id]) for clip_id in self.ids)

    def offsets(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """(len(ids) + 1,) rows of clips that lie one behind the other."""
        return np.cumsum([0, *(self._lengths[self._row[clip_id]] for clip_id in ids)])

    def check(self, ids: Sequence[str], frames: NDArray[Any]) -> None:
        """Compare an array of clips, one behind the other, with what they are.

        Raises:
            ValueError: a clip differs.
        """
        offsets = self.offsets(ids)
        for i, clip_id in enumerate(ids):
            if not np.array_equal(frames[offsets[i] : offsets[i + 1]], self[clip_id]):
                raise ValueError(f"clip {clip_id} came back changed")
