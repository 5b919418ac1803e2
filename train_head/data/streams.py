"""A stream: the rows that one backbone gave of the clips, and when they were."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_head.errors import TrainSettingsError

ROUNDING = 1e-6
"""Rows: how far before a row's start a time may lie and count as its start, since i / 25 / 0.04 is not always i."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows of the samples of a split; several splits may share `rows`.

    Attributes:
        name: of the stream.
        rows: (total rows, dim) features in the cache's storage dtype, or (total samples,) of audio.
        starts: (samples,) int64, the first row of each.
        lengths: (samples,) int64, its number of rows; 0 where there is nothing of this stream.
        hop: seconds from one row to the next; None where rows have `times`.
        times: (total rows, 2) float32, start and end of each row in seconds; None where there is a hop.
        valid: (total rows,) bool, where there was something; None where every row is valid.
    """

    name: str
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    hop: float | None = None
    times: Tensor | None = None
    valid: Tensor | None = None

    @property
    def dim(self) -> int:
        """Size of a row, VAD included."""
        return self.rows.shape[1]

    def take(self, samples: Tensor) -> "Stream":
        """Return some of the samples, on the same rows."""
        return replace(self, starts=self.starts[samples], lengths=self.lengths[samples])

    def to(self, device: torch.device, rows: Tensor) -> "Stream":
        """Return the stream on a device, with rows that lie there already."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, rows=rows, starts=self.starts.to(device), lengths=self.lengths.to(device), valid=valid)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the valid rows of each sample, in storage dtype."""
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            part = slice(start, start + length)
            yield self.rows[part] if self.valid is None else self.rows[part][self.valid[part]]

    def rows_at(self, sample: int, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Find the row that holds at each time.

        A row holds from its start to the start of the next; one with `times` from its start to its end.

        Args:
            sample: its number.
            seconds: (times,) from the beginning of the clip; NaN where no row is wanted.

        Returns:
            (times,) row numbers from the sample's first; -1 where no row holds.
        """
        length, start = int(self.lengths[sample]), int(self.starts[sample])
        if self.times is None:
            if self.hop is None:
                raise TrainSettingsError(
                    f"the rows of the stream {self.name!r} have neither a hop nor times, so nothing says which row "
                    "belongs to which label; import them with --hop"
                )
            found = np.floor(np.nan_to_num(seconds, nan=-1.0) / self.hop + ROUNDING).astype(np.int64)
            return np.where((found >= 0) & (found < length), found, -1)
        if not length:
            return np.full(len(seconds), -1)
        times, moment = self.times[start : start + length].numpy(), seconds.astype(np.float32)
        found = np.searchsorted(times[:, 0], moment, side="right") - 1
        holds = (found >= 0) & (moment < times[np.maximum(found, 0), 1])
        return np.where(holds, found, -1)


@dataclass(frozen=True)
class Rows:
    """The rows of one stream for a batch of clips.

    Attributes:
        frames: (batch, rows, dim) float32.
        lengths: (batch,) int64; 0 where a clip has nothing of this stream.
        valid: (batch, rows) bool, where there was something; None where every row within its clip is valid.
        at: (batch, reference rows) int64, the row that holds at each reference row, −1 where none does; None where
            clips are predicted.
    """

    frames: Tensor
    lengths: Tensor
    valid: Tensor | None = None
    at: Tensor | None = None
