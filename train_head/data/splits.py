"""Splits in memory: the rows of every stream, the labels, and the batches made of them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_head.data.labels import Labels
from train_head.data.matching import some_clips
from train_head.data.streams import Rows, Stream
from train_head.data.windows import Window, make_windows


@dataclass(frozen=True)
class Batch:
    """Some samples side by side.

    Attributes:
        streams: rows of each stream.
        targets: (batch, targets) in [0, 1], NaN where a label is missing; (batch, label rows, targets) for labels per
            frame, NaN behind a sample's end too.
    """

    streams: Mapping[str, Rows]
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """The clips of one label file; several splits may share the rows of their streams.

    A sample is a clip or, for labels per frame, a window of its label rows.

    Attributes:
        labels: ids and targets.
        streams: by name, the rows of each sample.
        targets: (clips, targets) float32 in [0, 1], or (label rows, targets) for labels per frame; NaN where a label is
            missing.
        windows: for labels per frame, the samples; None for labels per clip.
        at: for labels per frame, by stream, (label rows,) int64: the row of the clip that holds at each label row, from
            0 at the clip's first row of that stream; -1 where none does.
        skipped: for labels per frame, by stream, (samples,) int64: rows of the clip before those of each sample.
        misaligned: for labels per frame, clips whose label rows are a few more or less than the frames of their video.
    """

    labels: Labels
    streams: Mapping[str, Stream]
    targets: Tensor
    windows: Sequence[Window] | None = None
    at: Mapping[str, Tensor] | None = None
    skipped: Mapping[str, Tensor] | None = None
    misaligned: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def only(self) -> Stream:
        """The stream, where there is one."""
        (stream,) = self.streams.values()
        return stream

    @property
    def costs(self) -> Tensor:
        """(samples,) int64: rows of all streams, by which samples that share a batch are chosen."""
        lengths = [stream.lengths for stream in self.streams.values()]
        return lengths[0] if len(lengths) == 1 else torch.stack(lengths).sum(dim=0)

    def filename(self, sample: int) -> str:
        """Return the Filename of a sample's clip."""
        return self.labels.filenames[sample if self.windows is None else self.windows[sample].clip]

    def label_reach(self, reach: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return a reach in label rows for one in rows of every stream.

        It is the largest distance from a label row to one from which a window holds all the rows that the prediction
        there depends on, as far as its clip has them.
        """
        if reach is None or self.at is None or self.labels.offsets is None:
            return None
        before, after = 0, 0
        for rows in self.at.values():
            for a, b in itertools.pairwise(self.labels.offsets.tolist()):
                place = (rows[a:b] >= 0).nonzero().flatten()
                held = rows[a:b][place]
                if len(held):
                    first = torch.searchsorted(held, (held - reach[0]).clamp(min=held[0]), side="right") - 1
                    last = torch.searchsorted(held, (held + reach[1]).clamp(max=held[-1]), side="left")
                    before = max(before, int((place - place[first]).max()))
                    after = max(after, int((place[last] - place).max()))
        return before, after

    def found(self) -> dict[str, NDArray[np.bool_]]:
        """By stream, (label rows,) whether a valid row of it holds there; for labels per frame, in whole clips."""
        assert self.at is not None
        there = {}
        for name, stream in self.streams.items():
            held = self.at[name].cpu()
            starts = np.repeat(stream.starts.cpu().numpy(), self.labels.lengths)
            rows = torch.from_numpy(starts) + held.clamp(min=0)
            valid = held >= 0
            if stream.valid is not None:
                valid &= stream.valid.cpu()[rows.clamp(max=len(stream.valid) - 1)]
            there[name] = valid.numpy()
        return there

    def of_streams(self, names: Sequence[str]) -> "Split":
        """Return the same samples with some of the streams."""
        at, skipped = (None if part is None else {n: part[n] for n in names} for part in (self.at, self.skipped))
        return replace(self, streams={name: self.streams[name] for name in names}, at=at, skipped=skipped)

    def filled(self) -> "Split":
        """Return the same samples with valid rows in the places of others; see `Stream.filled`."""
        return replace(self, streams={name: stream.filled() for name, stream in self.streams.items()})

    def take(self, clips: Sequence[int]) -> "Split":
        """Return some of the clips, on the same rows; of labels per frame, before they are cut into windows."""
        at = torch.as_tensor(clips, dtype=torch.int64)
        labels = self.labels.take(clips)
        streams = {name: stream.take(at) for name, stream in self.streams.items()}
        rows = torch.from_numpy(self.labels.rows_of(clips))
        held = None if self.at is None else {name: row[rows] for name, row in self.at.items()}
        return Split(labels, streams, self.targets[rows], whole_clips(labels), held)

    def windowed(self, window: int, hop: int, *, labelled: bool = False) -> "Split":
        """Return the same label rows in windows; a split with labels per clip stays as it is.

        Args:
            window: label rows of a window; 0 takes whole clips.
            hop: label rows from one window to the next; 0 takes `window`.
            labelled: leave out windows without any label.
        """
        if self.at is None or self.labels.offsets is None:
            return self
        offsets = self.labels.offsets
        windows = make_windows(self.labels.lengths.tolist(), window, hop)
        if labelled:
            known = ~self.targets.isnan().all(dim=1)
            windows = [w for w in windows if known[offsets[w.clip] + w.first :][: w.rows].any()]
        clips = torch.tensor([w.clip for w in windows], dtype=torch.int64, device=self.targets.device)
        streams, skipped = {}, {}
        for name, stream in self.streams.items():
            held = [self.at[name][offsets[w.clip] + w.first :][: w.rows] for w in windows]
            spans = (
                torch.tensor([_span(rows) for rows in held], dtype=torch.int64).reshape(-1, 2).to(stream.starts.device)
            )
            skipped[name] = spans[:, 0]
            streams[name] = replace(stream, starts=stream.starts[clips] + spans[:, 0], lengths=spans[:, 1])
        return replace(self, streams=streams, windows=windows, skipped=skipped)

    def batch(self, samples: Sequence[int], workspace: "Workspace | None" = None) -> Batch:
        """Return some samples side by side.

        Args:
            samples: their numbers.
            workspace: where the rows are put; they hold until its next use. Fresh memory where not given.
        """
        workspace = workspace or Workspace()
        streams = {name: self._rows(name, samples, workspace) for name in self.streams}
        if self.windows is None:
            return Batch(streams, self.targets[torch.as_tensor(samples, dtype=torch.int64, device=self.targets.device)])
        return Batch(streams, self._per_label_row(samples, self.targets, float("nan")))

    def _rows(self, name: str, samples: Sequence[int], workspace: "Workspace") -> Rows:
        """Frames are zero-padded, and time-major in memory, which is how recurrent encoders read them."""
        stream = self.streams[name]
        at = torch.as_tensor(samples, dtype=torch.int64, device=stream.starts.device)
        lengths = stream.lengths[at]
        step = torch.arange(max(1, int(lengths.max())), device=at.device)[:, None]
        outside = step >= lengths  # (rows, batch)
        source = (stream.starts[at] + step).masked_fill_(outside, 0)
        times = None if stream.times is None else stream.times[source.T]
        if stream.index is not None:
            source = stream.index[source]
        stored = workspace.tensor(f"stored {name}", (source.numel(), stream.dim), stream.rows)
        torch.index_select(stream.rows, 0, source.view(-1), out=stored)
        frames = workspace.tensor(f"frames {name}", (*source.shape, stream.dim), self.targets)
        frames.copy_(stored.view(frames.shape)).masked_fill_(outside.unsqueeze(-1), 0.0)
        valid = None if stream.valid is None else (stream.valid[source] & ~outside).T
        return Rows(frames.transpose(0, 1), lengths, valid, self._held(name, samples), stream.hop, times)

    def _held(self, name: str, samples: Sequence[int]) -> Tensor | None:
        """(batch, label rows) row of each sample that holds, from its first; -1 where none does or behind its end."""
        if self.at is None:
            return None
        held = self._per_label_row(samples, self.at[name], -1)
        if self.skipped is None:
            return held
        before = self.skipped[name][torch.as_tensor(samples, device=held.device)][:, None]
        return torch.where(held >= 0, held - before, held)

    def _per_label_row(self, samples: Sequence[int], values: Tensor, filler: float) -> Tensor:
        """Values of the label rows of some windows, (batch, label rows, …), with a filler behind each."""
        assert self.windows is not None
        assert self.labels.offsets is not None
        windows = [self.windows[i] for i in samples]
        firsts = torch.tensor([int(self.labels.offsets[w.clip]) + w.first for w in windows], device=values.device)
        counts = torch.tensor([w.rows for w in windows], device=values.device)
        step = torch.arange(int(counts.max()), device=values.device)
        outside = step >= counts[:, None]  # (batch, label rows)
        found = values[(firsts[:, None] + step).masked_fill_(outside, 0)]
        return found.masked_fill(outside.view(*outside.shape, *[1] * (found.ndim - 2)), filler)


def lacking_streams(splits: Mapping[str, Split]) -> list[str]:
    """Return a sentence per stream that some clips lack, where there are several streams.

    Args:
        splits: by name, as `gather` gives them.
    """
    found, streams = [], next(iter(splits.values())).streams
    for stream in streams if len(streams) > 1 else ():
        lacking = {name: int((split.streams[stream].lengths == 0).sum()) for name, split in splits.items()}
        if any(lacking.values()):
            counts = ", ".join(f"{n} of {len(splits[name])} clips of {name}" for name, n in lacking.items())
            found.append(f"{counts} lack the stream {stream!r}, for which a learned vector stands")
    return found


def lacking_clips(splits: Mapping[str, Split]) -> list[tuple[str, str, str]]:
    """Return split, Filename and stream for each stream that a clip lacks, where there are several streams.

    Args:
        splits: by name, as `gather` gives them.
    """
    return [
        (name, split.labels.filenames[clip], stream)
        for name, split in splits.items()
        for clip in range(len(split))
        for stream, rows in (split.streams.items() if len(split.streams) > 1 else ())
        if not rows.lengths[clip]
    ]


def misaligned_clips(splits: Mapping[str, Split]) -> list[str]:
    """Return a sentence per split of which clips have a few label rows more or less than their video has frames."""
    return [
        f"{name}: label rows and frames of the video differ a little in {some_clips(split.misaligned)}; label rows "
        "beyond the last frame belong to it"
        for name, split in splits.items()
        if split.misaligned
    ]


def joined(one: Split, other: Split, labels: Labels) -> Split:
    """Return the clips of two splits on the same rows as one, with the labels of both."""
    streams = {
        name: replace(
            stream,
            starts=torch.cat([stream.starts, other.streams[name].starts]),
            lengths=torch.cat([stream.lengths, other.streams[name].lengths]),
            times=_joined_times(stream, other.streams[name]),
        )
        for name, stream in one.streams.items()
    }
    at = None
    if one.at is not None and other.at is not None:
        at = {name: torch.cat([rows, other.at[name]]) for name, rows in one.at.items()}
    return Split(labels, streams, torch.cat([one.targets, other.targets]), whole_clips(labels), at)


def _joined_times(one: Stream, other: Stream) -> Tensor | None:
    """Return the times of the rows of both: those of `only_valid` hold for the samples of their own split alone."""
    if one.times is None or other.times is None or one.times is other.times:
        return one.times
    times = one.times.clone()
    for start, length in zip(other.starts.tolist(), other.lengths.tolist(), strict=True):
        times[start : start + length] = other.times[start : start + length]
    return times


def whole_clips(labels: Labels) -> Sequence[Window] | None:
    """Return a window per clip that has label rows; None for labels per clip."""
    return make_windows(labels.lengths.tolist(), 0) if labels.by_frame else None


def _span(rows: Tensor) -> tuple[int, int]:
    """First row and number of rows that hold at some label row; none where no row does."""
    held = rows[rows >= 0]
    return (int(held.min()), int(held.max() - held.min()) + 1) if len(held) else (0, 0)


class Placer:
    """Puts splits on a device, where the rows lie in their storage dtype; splits that share them share one copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}

    def __call__(self, split: Split) -> Split:
        """Return the same clips on the device."""
        if split.targets.device.type == self._device.type:
            return split
        streams = {name: s.to(self._device, self._copy(s.rows)) for name, s in split.streams.items()}
        at, skipped = (
            None if part is None else {name: rows.to(self._device) for name, rows in part.items()}
            for part in (split.at, split.skipped)
        )
        return replace(split, streams=streams, targets=split.targets.to(self._device), at=at, skipped=skipped)

    def _copy(self, rows: Tensor) -> Tensor:
        place = (rows.data_ptr(), rows.shape)  # two tensors may be one array
        if place not in self._copies:  # the original is kept too, so that its address stays its own
            self._copies[place] = (rows, rows.to(self._device))
        return self._copies[place][1]


class Workspace:
    """Memory that every batch reuses, because the kernel would clear fresh pages first."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory of the dtype and device of `like`; holds until `name` is asked for again."""
        size = int(np.prod(shape))
        block = self._blocks.get(name)
        if block is None or len(block) < size:
            block = self._blocks[name] = like.new_empty(size)
        return block[:size].view(shape)


POOL_BATCHES, POOL_SHARE = 32, 4
"""Batches that are sorted by length together, but at most a quarter of all: enough to leave little padding (3 % of the
frames of Hume-Vidmimic2), few enough to keep epochs random."""


def shuffled_batches(costs: Tensor, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Return random batches of samples of similar length.

    The samples are shuffled, cut into pools of several batches, sorted by length inside each pool, cut into batches,
    and the batches shuffled: which samples meet changes from epoch to epoch, and little is padding.
    """
    costs = costs.cpu()
    order = torch.randperm(len(costs), generator=generator)
    batches: list[list[int]] = []
    pool_batches = max(1, min(POOL_BATCHES, len(costs) // (batch_size * POOL_SHARE)))
    for pool in order.split(batch_size * pool_batches):
        by_length = pool[costs[pool].argsort(stable=True)]
        batches += [batch.tolist() for batch in by_length.split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(costs: Tensor, batch_size: int) -> Iterator[list[int]]:
    """Yield every sample once, by length: for evaluation."""
    for batch in costs.cpu().argsort(stable=True).split(batch_size):
        yield batch.tolist()
