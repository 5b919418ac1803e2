"""Splits in memory: the cached features of all in one array, beside their labels, and the batches made of it."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.containers.file_rows import page_aligned
from cache.errors import ClipNameError, StaleCacheError
from cache.fingerprint import differences
from cache.format import Array
from cache.ids import match_ids
from cache.paths import StrPath
from cache.reader import FeatureCache, open_cache
from cache.shared import shared_load
from train_head.data.labels import Labels
from train_head.errors import LabelError

POOL_BATCHES, POOL_SHARE = 32, 4
"""Batches that are sorted by length together, but at most a quarter of all: enough to leave little padding (3 % of the
frames of Hume-Vidmimic2), few enough to keep epochs random."""


@dataclass(frozen=True, eq=False)
class Split:
    """The clips of one label file; several splits may share `rows`.

    Attributes:
        labels: ids and targets.
        rows: of all clips: (total frames, dim) features in the cache's storage dtype, or (total samples,) of audio.
        starts: (clips,) int64, the first row of a clip.
        lengths: (clips,) int64, number of rows of a clip.
        targets: (clips, targets) float32 in [0, 1], NaN where a label is missing.
    """

    labels: Labels
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dim(self) -> int:
        """Size of a frame, VAD included."""
        return self.rows.shape[1]

    def take(self, clips: Sequence[int]) -> "Split":
        """Return some of its clips, on the same rows."""
        at = torch.as_tensor(clips, dtype=torch.int64)
        return Split(self.labels.take(clips), self.rows, self.starts[at], self.lengths[at], self.targets[at])

    def clips(self) -> Iterator[Tensor]:
        """Yield the (frames, dim) of each clip, in storage dtype."""
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield self.rows[start : start + length]

    def batch(self, clips: Sequence[int], workspace: "Workspace | None" = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return some clips side by side.

        Args:
            clips: their numbers.
            workspace: where the frames are put; they hold until its next use. Fresh memory where not given.

        Returns:
            (batch, frames, dim) float32 zero-padded, time-major in memory, which is how recurrent heads read it;
            (batch,) lengths; (batch, targets).
        """
        workspace = workspace or Workspace()
        at = torch.as_tensor(clips, dtype=torch.int64, device=self.starts.device)
        lengths = self.lengths[at]
        step = torch.arange(int(lengths.max()), device=at.device)[:, None]
        outside = step >= lengths  # (frames, batch)
        source = (self.starts[at] + step).masked_fill_(outside, 0)
        stored = workspace.tensor("stored", (source.numel(), self.dim), self.rows)
        torch.index_select(self.rows, 0, source.view(-1), out=stored)
        frames = workspace.tensor("frames", (*source.shape, self.dim), self.targets)
        frames.copy_(stored.view(frames.shape)).masked_fill_(outside.unsqueeze(-1), 0.0)
        return frames.transpose(0, 1), lengths, self.targets[at]


class Placer:
    """Puts splits on a device, where the frames lie in their storage dtype; splits that share them share one copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}

    def __call__(self, split: Split) -> Split:
        """Return the same clips on the device."""
        if split.starts.device.type == self._device.type:
            return split
        place = (split.rows.data_ptr(), split.rows.shape)  # two tensors may be one array
        if place not in self._copies:  # the original is kept too, so that its address stays its own
            self._copies[place] = (split.rows, split.rows.to(self._device))
        tensors = (t.to(self._device) for t in (split.starts, split.lengths, split.targets))
        return Split(split.labels, self._copies[place][1], *tensors)


class Workspace:
    """Memory that every batch reuses, because the kernel would clear fresh pages first."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory of the dtype and device of `like`; holds until `name` is asked for again.

        Args:
            name: of the block of memory.
            shape: of the tensor.
            like: a tensor of the wanted dtype and device.
        """
        size = int(np.prod(shape))
        block = self._blocks.get(name)
        if block is None or len(block) < size:
            block = self._blocks[name] = like.new_empty(size)
        return block[:size].view(shape)


def open_caches(paths: Sequence[StrPath]) -> list[FeatureCache]:
    """Open the caches whose clips are trained on together.

    Raises:
        StaleCacheError: their fingerprints differ; names the fields.
    """
    stores = [open_cache(path) for path in paths]
    for store in stores[1:]:
        differing = differences(stores[0].fingerprint, store.fingerprint)
        if differing:
            raise StaleCacheError(
                f"{stores[0].path} and {store.path} were made in different ways: {'; '.join(differing)}; extract both "
                "with the same settings, or train on one"
            )
    return stores


def gather(
    stores: Sequence[FeatureCache],
    labels: Mapping[str, Labels],
    *,
    skip_missing: bool = False,
    shared: StrPath | None = None,
) -> dict[str, Split]:
    """Load the clips of label files into memory, all into one array.

    Args:
        stores: caches with equal fingerprints; the first that holds a clip gives it.
        labels: by split, which clips in which order, by their ids (`resolve_splits`).
        skip_missing: leave out clips that no cache holds instead of refusing.
        shared: folder of a memory map that every process which asks for the same clips of one cache has in common;
            see `cache.shared.shared_load`.

    Raises:
        LabelError: clips are missing; says how many and names the first five.
    """
    labels = {name: _held(stores, part, skip_missing) for name, part in labels.items()}
    clips = list(dict.fromkeys(clip for part in labels.values() for clip in part.ids))
    if shared is None:
        clips, frames, lengths = _load(stores, clips)
    else:
        (store,) = stores
        stored, offsets = shared_load(store, clips, shared)
        frames = np.load(stored.filename, mmap_mode="c")  # type: ignore[attr-defined]  # torch knows no read-only arrays
        lengths = np.diff(offsets)
    place = dict(zip(clips, zip((np.cumsum(lengths) - lengths).tolist(), lengths.tolist(), strict=True), strict=True))
    rows = torch.from_numpy(frames)  # one tensor, which all splits share
    return {name: _split(part, rows, place) for name, part in labels.items()}


def _load(stores: Sequence[FeatureCache], clips: Sequence[str]) -> tuple[list[str], Array, NDArray[np.int64]]:
    """Load clips from the first cache that holds each.

    Returns:
        The clips in the order in which they are loaded; (total frames, dim) frames; (clips,) numbers of frames.
    """
    owner = {clip: next(i for i, store in enumerate(stores) if clip in store) for clip in clips}
    of_store = [[clip for clip in clips if owner[clip] == i] for i in range(len(stores))]
    lengths = [np.diff(store.offsets(ids)) for store, ids in zip(stores, of_store, strict=True)]
    first, header = 0, stores[0].header
    frames = page_aligned((sum(int(n.sum()) for n in lengths), header.width), header.dtype)
    for store, ids, numbers in zip(stores, of_store, lengths, strict=True):
        store.load(ids, out=frames[first : first + int(numbers.sum())])
        first += int(numbers.sum())
    return list(itertools.chain(*of_store)), frames, np.concatenate(lengths)


def shuffled_batches(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Return random batches of clips of similar length.

    The clips are shuffled, cut into pools of several batches, sorted by length inside each pool, cut into batches, and
    the batches shuffled: which clips meet changes from epoch to epoch, and little is padding.

    Args:
        lengths: (clips,) numbers of frames.
        batch_size: clips per batch.
        generator: of the shuffles.
    """
    lengths = lengths.cpu()
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[list[int]] = []
    pool_batches = max(1, min(POOL_BATCHES, len(lengths) // (batch_size * POOL_SHARE)))
    for pool in order.split(batch_size * pool_batches):
        by_length = pool[lengths[pool].argsort(stable=True)]
        batches += [batch.tolist() for batch in by_length.split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Tensor, batch_size: int) -> list[list[int]]:
    """Return batches of (clips,) lengths, each clip once and sorted by length, for evaluation."""
    return [batch.tolist() for batch in lengths.cpu().argsort(stable=True).split(batch_size)]


def _split(labels: Labels, frames: Tensor, place: Mapping[str, tuple[int, int]]) -> Split:
    rows = torch.tensor([place[clip] for clip in labels.ids], dtype=torch.int64)
    return Split(labels, frames, rows[:, 0].contiguous(), rows[:, 1].contiguous(), torch.from_numpy(labels.unit_values))


def resolve(labels: Labels, known: Collection[str]) -> Labels:
    """Return the labels with the ids by which `known` has their clips; a clip that it lacks keeps its own.

    Args:
        labels: of a split.
        known: ids of the clips of caches, or paths of media.

    Raises:
        LabelError: a Filename may be several clips, or two rows are one clip; names them.
    """
    try:
        found = match_ids(labels.filenames, known)
    except ClipNameError as error:
        raise LabelError(f"{labels.path}: {error}") from error
    return replace(labels, ids=tuple(clip or own for clip, own in zip(found, labels.ids, strict=True)))


def resolve_splits(stores: Sequence[FeatureCache], labels: Mapping[str, Labels]) -> dict[str, Labels]:
    """`resolve` the splits of one training.

    Args:
        stores: caches that hold their clips.
        labels: by split.
    """
    known: Collection[str] = stores[0] if len(stores) == 1 else dict.fromkeys(itertools.chain(*stores))
    return {name: resolve(part, known) for name, part in labels.items()}


def _held(stores: Sequence[FeatureCache], labels: Labels, skip_missing: bool) -> Labels:
    """Return the labels of clips that a cache holds; refuse missing ones unless they are skipped."""
    missing = {i for i, clip in enumerate(labels.ids) if not any(clip in store for store in stores)}
    if not missing:
        return labels
    if skip_missing and len(missing) < len(labels):
        return labels.take([i for i in range(len(labels)) if i not in missing])
    first = ", ".join(labels.filenames[i] for i in sorted(missing)[:5])
    advice = "extract them (failures.csv beside the cache says why a clip failed), or give --skip-missing"
    if len(missing) == len(labels) and len(stores[0]):
        advice = f"the cache's ids look like {stores[0].ids[0]!r}, so the two do not belong together"
    raise LabelError(
        f"{len(missing)} of the {len(labels)} clips of {labels.path} are not in "
        f"{' and '.join(store.path for store in stores)} (first: {first}); {advice}"
    )
