"""A split in memory: cached features beside labels, and the batches made of it."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.container import StrPath
from cache.errors import StaleCacheError
from cache.fingerprint import differences
from cache.reader import FeatureCache, open_cache
from train_head.errors import LabelError
from train_head.labels import Labels

POOL_BATCHES = 16
"""Batches that are sorted by length together: enough to leave little padding, few enough to keep epochs random."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split, gathered once.

    Attributes:
        labels: ids and targets.
        frames: (total frames, dim) in the cache's storage dtype, the clips one after the other.
        offsets: (clips + 1,) int64; clip i is rows offsets[i]:offsets[i + 1].
        targets: (clips, targets) float32.
    """

    labels: Labels
    frames: Tensor
    offsets: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dim(self) -> int:
        """Size of a frame, VAD included."""
        return self.frames.shape[1]

    @functools.cached_property
    def lengths(self) -> Tensor:
        """(clips,) frames of each clip."""
        return self.offsets.diff()

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, frames, dim) float32 zero-padded, (batch,) lengths, (batch, targets)."""
        lengths = self.lengths[list(rows)]
        padded = torch.zeros(len(rows), int(lengths.max()), self.dim)
        for out, row in zip(padded, rows, strict=True):
            start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
            out[: stop - start] = self.frames[start:stop]
        return padded, lengths, self.targets[list(rows)]


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


def gather(stores: Sequence[FeatureCache], labels: Labels, *, skip_missing: bool = False) -> Split:
    """Load the clips of a label file into memory.

    Args:
        stores: caches with equal fingerprints; the first that holds a clip gives it.
        labels: which clips, in which order.
        skip_missing: leave out clips that no cache holds instead of refusing.

    Raises:
        LabelError: clips are missing; says how many and names the first five.
    """
    missing = [i for i, clip in enumerate(labels.ids) if not any(clip in store for store in stores)]
    if missing and (not skip_missing or len(missing) == len(labels)):
        raise LabelError(_describe_missing(stores, labels, missing))
    if missing:
        gone = set(missing)
        labels = labels.take([i for i in range(len(labels)) if i not in gone])
    arrays, lengths = [], []
    for store, rows in _runs(stores, labels):
        array, offsets = store.load([labels.ids[i] for i in rows])
        arrays.append(array)
        lengths.append(np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    frames = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Split(labels, torch.from_numpy(frames), torch.from_numpy(offsets), torch.from_numpy(labels.values))


def shuffled_batches(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Random batches of clips of similar length.

    The clips are shuffled, cut into pools of `POOL_BATCHES` batches, sorted by length inside each pool, cut into
    batches, and the batches shuffled: which clips meet changes from epoch to epoch, and little is padding.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[list[int]] = []
    for pool in order.split(batch_size * POOL_BATCHES):
        by_length = pool[lengths[pool].argsort(stable=True)]
        batches += [batch.tolist() for batch in by_length.split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Tensor, batch_size: int) -> list[list[int]]:
    """Every clip once, by length: for evaluation."""
    return [batch.tolist() for batch in lengths.argsort(stable=True).split(batch_size)]


def _runs(stores: Sequence[FeatureCache], labels: Labels) -> Iterator[tuple[FeatureCache, list[int]]]:
    """Consecutive rows that come from the same cache."""
    current: FeatureCache | None = None
    rows: list[int] = []
    for i, clip in enumerate(labels.ids):
        store = next(store for store in stores if clip in store)
        if store is not current and current is not None:
            yield current, rows
            rows = []
        current = store
        rows.append(i)
    if current is not None:
        yield current, rows


def _describe_missing(stores: Sequence[FeatureCache], labels: Labels, missing: Sequence[int]) -> str:
    where = " and ".join(store.path for store in stores)
    first = ", ".join(labels.filenames[i] for i in missing[:5])
    text = f"{len(missing)} of the {len(labels)} clips of {labels.path} are not in {where} (first: {first})"
    if len(missing) == len(labels) and len(stores[0]):
        return f"{text}; the cache's ids look like {stores[0].ids[0]!r}, so the two do not belong together"
    return f"{text}; extract them (failures.csv beside the cache says why a clip failed), or give --skip-missing"
