"""A stream: the rows that one backbone gave of the clips, and when they were."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_head.errors import TrainSettingsError

ROUNDING = 2.0**-23
"""Share of a time by which it may lie before a row's start and count as its start: a time in float32 is off by up to
2^-24 of itself (0.9 ms at four hours), and i / 25 / 0.04 in float64 is not always i."""
CLOSE = 1e-3
"""Seconds: the same where rows have times, which many tools round to milliseconds."""


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
        index: (valid rows,) int64, the rows in which `starts` and `lengths` count; None where they count in all.
    """

    name: str
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    hop: float | None = None
    times: Tensor | None = None
    valid: Tensor | None = None
    index: Tensor | None = None

    @property
    def dim(self) -> int:
        """Size of a row, VAD included."""
        return self.rows.shape[1]

    def take(self, samples: Tensor) -> "Stream":
        """Return some of the samples, on the same rows."""
        return replace(self, starts=self.starts[samples], lengths=self.lengths[samples])

    def to(self, device: torch.device, rows: Tensor) -> "Stream":
        """Return the stream on a device, with rows that lie there already."""
        optional = {
            name: part.to(device) for name in ("times", "valid", "index") if (part := getattr(self, name)) is not None
        }
        return replace(self, rows=rows, starts=self.starts.to(device), lengths=self.lengths.to(device), **optional)

    def only_valid(self) -> "Stream":
        """Return the stream without the rows that are not valid."""
        if self.valid is None:
            return self
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self.valid.cumsum(0)])  # valid rows before each
        starts = before[self.starts]
        lengths = before[self.starts + self.lengths] - starts
        index = self.valid.nonzero()[:, 0]
        times = self._row_times()[index]
        return replace(self, starts=starts, lengths=lengths, hop=None, times=times, valid=None, index=index)

    def _row_times(self) -> Tensor:
        """(total rows, 2) float32 start and end of each row."""
        if self.times is not None:
            return self.times
        assert self.hop is not None
        first = torch.zeros(len(self.rows), dtype=torch.int64)
        starts = self.starts[self.lengths > 0]
        first[starts] = starts
        number = torch.arange(len(first)) - first.cummax(0).values  # within its clip
        return (torch.stack([number, number + 1], dim=1) * self.hop).float()

    def without_empty(self) -> "Stream":
        """Return the stream with no rows where a sample has no valid ones, as where it has nothing of the stream."""
        empty = self.only_valid().lengths == 0
        return replace(self, lengths=self.lengths.masked_fill(empty, 0))

    def filled(self) -> "Stream":
        """Return the stream with the nearest valid row of a sample in the place of each that is not valid.

        Of two that are equally near it is the earlier; a sample without valid rows stays as it is.
        """
        if self.valid is None:
            return self
        index = torch.arange(len(self.rows), device=self.valid.device)
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            known = self.valid[start : start + length].nonzero()[:, 0]
            if 0 < len(known) < length:
                row = torch.arange(length, device=known.device)
                after = known[torch.searchsorted(known, row).clamp(max=len(known) - 1)]
                before = known[(torch.searchsorted(known, row, right=True) - 1).clamp(min=0)]
                nearest = torch.where((row - before).abs() <= (after - row).abs(), before, after)
                index[start : start + length] = start + nearest
        return replace(self, index=index)

    def chopped(self, longest: int) -> "Stream":
        """Return the stream with each sample cut into samples of at most so many rows."""
        starts, lengths = list[int](), list[int]()
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            for at in range(0, length, longest):
                starts.append(start + at)
                lengths.append(min(longest, length - at))
        return replace(self, starts=torch.tensor(starts, dtype=torch.int64), lengths=torch.tensor(lengths).long())

    def chunks(self) -> Iterator[Tensor]:
        """Yield the valid rows of each sample, in storage dtype."""
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            part = slice(start, start + length)
            if self.index is not None:
                yield self.rows[self.index[part]]
            else:
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
        refuse_timeless(self.name, self.hop, self.times)
        length, start = int(self.lengths[sample]), int(self.starts[sample])
        if not length:
            return np.full(len(seconds), -1)
        times = None if self.times is None else self.times[None, start : start + length]
        found = rows_at(torch.from_numpy(seconds)[None], self.lengths[sample : sample + 1], self.hop, times)
        held: NDArray[np.int64] = found[0].numpy()
        return held


@dataclass(frozen=True)
class Rows:
    """The rows of one stream for a batch of clips.

    Attributes:
        frames: (batch, rows, dim) float32.
        lengths: (batch,) int64; 0 where a clip has nothing of this stream.
        valid: (batch, rows) bool, where there was something; None where every row within its clip is valid.
        at: (batch, reference rows) int64, the row that holds at each reference row, −1 where none does; None where
            clips are predicted.
        hop: seconds from one row to the next; None where rows have `times`, or nothing says when they are.
        times: (batch, rows, 2) float32, start and end of each row in seconds; None where there are none.
    """

    frames: Tensor
    lengths: Tensor
    valid: Tensor | None = None
    at: Tensor | None = None
    hop: float | None = None
    times: Tensor | None = None

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on a device."""
        names = ("frames", "lengths", "valid", "at", "times")
        return replace(self, **{name: part.to(device) for name in names if (part := getattr(self, name)) is not None})

    def split(self, samples: int) -> list["Rows"]:
        """Return so many samples at a time."""
        names = ("frames", "lengths", "valid", "at", "times")
        parts = {name: part.split(samples) for name in names if (part := getattr(self, name)) is not None}
        return [replace(self, **dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)]

    @property
    def inside(self) -> Tensor:
        """(batch, rows) bool, where there is a valid row of the clip."""
        inside = self._step < self.lengths[:, None]
        return inside if self.valid is None else inside & self.valid

    @property
    def present(self) -> Tensor:
        """(batch,) bool, whether there is a valid row of the clip."""
        return self.inside.any(dim=1)

    @property
    def seconds(self) -> Tensor:
        """(batch, rows) float64, when each row begins; NaN behind a clip's end, and of a clip without valid rows."""
        there = (self._step < self.lengths[:, None]) & self.present[:, None]
        if self.times is not None:
            return torch.where(there, self.times[..., 0].double(), torch.nan)
        assert self.hop is not None
        return torch.where(there, self._step.double() * self.hop, torch.nan)

    @property
    def _step(self) -> Tensor:
        return torch.arange(self.frames.shape[1], device=self.lengths.device)


def refuse_timeless(name: str, hop: float | None, times: Tensor | None) -> None:
    """Refuse a stream of which nothing says when its rows are.

    Raises:
        TrainSettingsError: names the stream.
    """
    if hop is None and times is None:
        raise TrainSettingsError(
            f"the rows of the stream {name!r} have neither a hop nor times, so nothing says when they are; import them "
            "with --hop"
        )


def rows_at(seconds: Tensor, lengths: Tensor, hop: float | None, times: Tensor | None) -> Tensor:
    """Find the row that holds at each time.

    A row holds from its start to the start of the next; one with `times` from its start to its end.

    Args:
        seconds: (batch, moments) float64, from the beginning of each clip; NaN where no row is wanted.
        lengths: (batch,) int64, rows of each clip.
        hop: seconds from one row to the next, where there are no times.
        times: (batch, rows, 2) float32, start and end of each row.

    Returns:
        (batch, moments) int64 row numbers; -1 where no row holds.
    """
    latest = seconds * (1 + ROUNDING)
    if times is None:
        assert hop is not None
        found = (latest.nan_to_num(nan=-1.0) / hop).floor().long()
        return torch.where((found >= 0) & (found < lengths[:, None]), found, -1)
    behind = torch.arange(times.shape[1], device=times.device) >= lengths[:, None]
    starts, ends = times.double().masked_fill(behind.unsqueeze(-1), torch.inf).unbind(dim=2)
    found = torch.searchsorted(starts.contiguous(), latest + CLOSE, right=True) - 1
    holds = (found >= 0) & (seconds < ends.gather(1, found.clamp(min=0)))
    return torch.where(holds, found, -1)
