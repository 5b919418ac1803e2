"""From caches and label files to splits: join clips by id, load each stream into one array, set the reference clock."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache.containers.file_rows import page_aligned
from cache.errors import ClipNameError, StaleCacheError
from cache.fingerprint import differences
from cache.format import OPTIONAL
from cache.gather import Loaded
from cache.ids import match_ids
from cache.paths import StrPath
from cache.reader import FeatureCache, open_cache
from cache.shared import shared_load
from train_head.data.clock import label_clock, rows_at_labels
from train_head.data.labels import Labels
from train_head.data.splits import Split, whole_clips
from train_head.data.streams import Stream
from train_head.errors import LabelError, check_known

UNCOVERED = 0.1
"""Share of the labelled rows that may lack features of every stream: ends may differ by a few rows."""
Stores = Mapping[str, Sequence[FeatureCache]]
"""By stream, caches with equal fingerprints that together hold its clips."""


def open_stores(caches: Mapping[str, Sequence[StrPath]]) -> dict[str, list[FeatureCache]]:
    """Open the caches of every stream.

    Raises:
        StaleCacheError: the fingerprints of one stream's caches differ; names the fields.
    """
    return {name: open_caches(paths) for name, paths in caches.items()}


def open_caches(paths: Sequence[StrPath]) -> list[FeatureCache]:
    """Open caches whose clips are trained on together.

    Raises:
        StaleCacheError: their fingerprints differ; names the fields.
    """
    stores = [open_cache(path) for path in paths]
    for store in stores[1:]:
        differing = differences(stores[0].fingerprint, store.fingerprint)
        if differing:
            raise StaleCacheError(
                f"{stores[0].path} and {store.path} were made in different ways: {'; '.join(differing)}; extract both "
                "with the same settings, train on one, or name them with --cache NAME=PATH to use them as two streams"
            )
        if store.header.shape != stores[0].header.shape:
            raise StaleCacheError(
                f"{stores[0].path} holds {stores[0].header.shape}, and {store.path} {store.header.shape}; train on "
                "one, or name them with --cache NAME=PATH to use them as two streams"
            )
    return stores


def gather(
    stores: Stores,
    labels: Mapping[str, Labels],
    *,
    skip_missing: bool = False,
    require: Sequence[str] = (),
    shared: StrPath | None = None,
    fps: float = 0.0,
) -> dict[str, Split]:
    """Load the clips of label files into memory, each stream into one array.

    A clip that lacks some of the streams is used, unless these are required. One in which nothing was found lacks it.

    Args:
        stores: the caches of every stream; the first that holds a clip gives it.
        labels: by split, which clips in which order, by their ids (`resolve_splits`).
        skip_missing: leave out clips that no stream has, or that lack a required one, instead of refusing.
        require: names of streams that every clip must have.
        shared: folder of memory maps that all processes which ask for the same clips have in common, one per stream;
            each stream of one cache. See `cache.shared.shared_load`.
        fps: label rows per second, for labels per frame; 0 where they are the rows of a stream with times.

    Raises:
        LabelError: clips are missing; says how many and names the first five.
        TrainSettingsError: a stream is required that is not there.
    """
    labels = {name: held_clips(stores, part, skip_missing, require) for name, part in labels.items()}
    for part in labels.values():
        refuse_foreign(stores, part)
    found = gather_streams(stores, {name: part.ids for name, part in labels.items()}, shared)
    splits = {}
    for name, part in labels.items():
        splits[name] = with_required(make_split(part, found[name], fps), skip_missing, require)
    return splits


def make_split(labels: Labels, streams: Mapping[str, Stream], fps: float = 0.0) -> Split:
    """Join the labels of clips and the rows of their streams.

    Args:
        labels: of the clips.
        streams: by name, all rows of the same clips; for labels per clip the split keeps the valid ones.
        fps: see `gather`.

    Raises:
        LabelError: nothing says when label rows are, or many are at times for which there are no features.
    """
    kept = {name: rows.without_empty() if labels.by_frame else rows.only_valid() for name, rows in streams.items()}
    split = Split(labels, kept, torch.from_numpy(labels.unit_values), whole_clips(labels))
    if not labels.by_frame:
        return split
    clock = label_clock(labels, streams, fps)
    misaligned = clock.differing(labels)
    at = rows_at_labels(split.labels, split.streams, clock.fps, clock)
    _refuse_uncovered(split.labels, at)
    return replace(split, at=at, misaligned=misaligned)


def gather_streams(
    stores: Stores, splits: Mapping[str, Sequence[str]], shared: StrPath | None = None
) -> dict[str, dict[str, Stream]]:
    """Load the clips of splits into memory, each stream into one array that the splits share.

    Args:
        stores: the caches of every stream; the first that holds a clip gives it.
        splits: by name, ids of clips; one that a stream lacks has no rows there.
        shared: see `gather`.

    Returns:
        By split, its streams.

    Raises:
        LabelError: nothing was found in any clip of a stream.
    """
    clips = list(dict.fromkeys(itertools.chain(*splits.values())))
    loaded = {name: _load(caches, clips, shared) for name, caches in stores.items()}
    for name, rows in loaded.items():
        if rows.valid is not None and len(rows.valid) and not rows.valid.any():
            raise LabelError(
                f"nothing was found in any of the clips of the stream {name!r} ({stores[name][0].path}): no row is "
                "valid; leave the stream out, or look at how it was extracted"
            )
    return {
        split: {name: rows.stream(name, stores[name][0], ids) for name, rows in loaded.items()}
        for split, ids in splits.items()
    }


def refuse_foreign(stores: Stores, labels: Labels) -> None:
    """Refuse a stream that has none of the clips, where another has some: its ids are others.

    Raises:
        LabelError: names the stream.
    """
    for name, caches in stores.items():
        if len(labels) and not any(clip in store for clip in labels.ids for store in caches):
            example = f", whose ids look like {caches[0].ids[0]!r}" if len(caches[0]) else ""
            raise LabelError(
                f"the stream {name!r} ({caches[0].path}{example}) has none of the {len(labels)} clips of "
                f"{labels.path}; leave it out, or give the cache that belongs to these labels"
            )


def _refuse_uncovered(labels: Labels, at: Mapping[str, Tensor]) -> None:
    """Refuse labels of which many are at times for which there are no features.

    Raises:
        LabelError: says how many.
    """
    labelled = ~np.isnan(labels.values).all(axis=1)
    covered = torch.stack([rows >= 0 for rows in at.values()]).any(dim=0).numpy()
    missing = int((labelled & ~covered).sum())
    if missing > UNCOVERED * labelled.sum():
        raise LabelError(
            f"{missing} of the {int(labelled.sum())} labelled rows of {labels.path} are at times for which no stream "
            "has features; extract with --max-seconds none if clips are longer than the cut, and check --label-fps"
        )


@dataclass(frozen=True)
class _Loaded:
    """Rows of the clips of one stream, and where each clip's are."""

    rows: Tensor
    places: Mapping[str, tuple[int, int]]
    times: Tensor | None = None
    valid: Tensor | None = None

    def stream(self, name: str, store: FeatureCache, clips: Sequence[str]) -> Stream:
        """Return the stream of some of the clips; a clip that is not there has no rows."""
        at = torch.tensor([self.places.get(clip, (0, 0)) for clip in clips], dtype=torch.int64).reshape(-1, 2)
        starts, lengths = at[:, 0].contiguous(), at[:, 1].contiguous()
        return Stream(name, self.rows, starts, lengths, store.hop_seconds, self.times, self.valid)


def _load(
    stores: Sequence[FeatureCache],
    clips: Sequence[str],
    shared: StrPath | None,
) -> _Loaded:
    """Load the clips that the caches of one stream hold."""
    owner = {clip: i for clip in clips for i, store in reversed(list(enumerate(stores))) if clip in store}
    of_store = [[clip for clip in clips if owner.get(clip) == i] for i in range(len(stores))]
    if shared is None:
        loaded = _read(stores, of_store)
    else:
        loaded = shared_load(stores[0], of_store[0], shared)
        # torch knows no read-only arrays
        loaded = replace(loaded, rows=np.load(loaded.rows.filename, mmap_mode="c"))  # type: ignore[attr-defined]
    found, offsets = itertools.chain(*of_store), loaded.offsets
    places = zip(offsets[:-1].tolist(), np.diff(offsets).tolist(), strict=True)
    times, valid = (None if a is None else torch.from_numpy(a) for a in (loaded.times, loaded.valid))
    return _Loaded(torch.from_numpy(loaded.rows), dict(zip(found, places, strict=True)), times, valid)


def _read(stores: Sequence[FeatureCache], of_store: Sequence[Sequence[str]]) -> Loaded:
    """Read clips of each cache, one cache after the other."""
    offsets = [store.offsets(ids) for store, ids in zip(stores, of_store, strict=True)]
    firsts = np.cumsum([0, *(own[-1] for own in offsets)])
    rows = page_aligned((int(firsts[-1]), stores[0].header.width), stores[0].header.dtype)
    parts = [
        store.load_all(ids, out=rows[first:last])
        for store, ids, (first, last) in zip(stores, of_store, itertools.pairwise(firsts), strict=True)
    ]
    optional = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in OPTIONAL
        if name in stores[0].header.layout
    }
    joined = [own[:-1] + first for own, first in zip(offsets, firsts[:-1], strict=True)]
    return Loaded(rows, np.concatenate([*joined, firsts[-1:]]), **optional)


def resolve(labels: Labels, known: Collection[str]) -> Labels:
    """Return the labels with the ids by which `known` has their clips; a clip that it lacks keeps its own.

    Raises:
        LabelError: a Filename may be several clips, or two rows are one clip; names them.
    """
    try:
        found = match_ids(labels.filenames, known)
    except ClipNameError as error:
        raise LabelError(f"{labels.path}: {error}") from error
    return replace(labels, ids=tuple(clip or own for clip, own in zip(found, labels.ids, strict=True)))


def resolve_splits(stores: Stores, labels: Mapping[str, Labels]) -> dict[str, Labels]:
    """`resolve` the splits of one training against the caches that hold their clips."""
    every = list(itertools.chain(*stores.values()))
    known: Collection[str] = every[0] if len(every) == 1 else dict.fromkeys(itertools.chain(*every))
    return {name: resolve(part, known) for name, part in labels.items()}


def missing_clips(
    stores: Stores, clips: Sequence[str], require: Sequence[str] = (), *, in_some: bool = True
) -> dict[str, set[int]]:
    """Return the numbers of the clips that no stream has, under "", and of those that lack each required stream.

    Args:
        stores: the caches of every stream.
        clips: ids.
        require: names of streams.
        in_some: whether a clip must be in the caches of some stream.

    Raises:
        TrainSettingsError: a stream is required that is not there.
    """
    check_known("stream to require", require, stores)
    anywhere = {"": list(itertools.chain(*stores.values()))} if in_some else {}
    groups = anywhere | {name: stores[name] for name in require}
    return {
        name: {i for i, clip in enumerate(clips) if not any(clip in store for store in group)}
        for name, group in groups.items()
    }


def held_clips(
    stores: Stores, labels: Labels, skip_missing: bool, require: Sequence[str], *, in_some: bool = True
) -> Labels:
    """Return the labels of clips that some stream has, and all required ones; refuse others unless they are skipped.

    Args:
        stores: the caches of every stream.
        labels: of the clips.
        skip_missing: leave others out.
        require: names of streams.
        in_some: see `missing_clips`.

    Raises:
        LabelError: clips are missing; says how many and names the first five.
        TrainSettingsError: a stream is required that is not there.
    """
    missing = missing_clips(stores, labels.ids, require, in_some=in_some)
    left_out = set().union(*missing.values())
    if not left_out:
        return labels
    if skip_missing and len(left_out) < len(labels):
        return labels.take([i for i in range(len(labels)) if i not in left_out])
    advice = "extract them (failures.csv beside the cache says why a clip failed), or give --skip-missing"
    problems = []
    for name, lacking in missing.items():
        caches = stores[name] if name else list(itertools.chain(*stores.values()))
        if len(lacking) == len(labels) and len(caches[0]):
            advice = f"the cache's ids look like {caches[0].ids[0]!r}, so the two do not belong together"
        if lacking:
            problems.append(
                f"{len(lacking)} of the {len(labels)} clips of {labels.path} are not in "
                f"{' and '.join(store.path for store in caches)}{f', the required stream {name!r}' if name else ''} "
                f"{_first(labels, lacking)}"
            )
    empty = {name: _without_valid_rows(stores[name], labels.ids) for name in require}
    raise LabelError("; ".join([*problems, *_nothing_found(labels, empty), advice]))


def _first(labels: Labels, clips: Collection[int]) -> str:
    return f"(first: {', '.join(labels.filenames[i] for i in sorted(clips)[:5])})"


def _nothing_found(labels: Labels, empty: Mapping[str, Collection[int]]) -> list[str]:
    """Return a sentence for each required stream of which nothing was found in some clips."""
    return [
        f"nothing was found of the required stream {name!r} in {len(clips)} of the {len(labels)} clips of "
        f"{labels.path} {_first(labels, clips)}"
        for name, clips in empty.items()
        if clips
    ]


def _without_valid_rows(stores: Sequence[FeatureCache], clips: Sequence[str]) -> list[int]:
    """Return the numbers of the clips that a stream holds, but in which nothing was found."""
    held = [(i, next((store for store in stores if clip in store), None)) for i, clip in enumerate(clips)]
    valid = [(i, store[clips[i]].valid) for i, store in held if store is not None]
    return [i for i, rows in valid if rows is not None and not rows.any()]


def with_required(split: Split, skip_missing: bool, require: Sequence[str]) -> Split:
    """Return the clips in which something was found of every required stream; refuse others unless they are skipped.

    Args:
        split: with the rows of its streams.
        skip_missing: leave others out.
        require: names of streams.

    Raises:
        LabelError: there are others; says how many and names the first five.
    """
    empty = {name: (split.streams[name].lengths == 0).nonzero().flatten().tolist() for name in require}
    left_out = set().union(*empty.values())
    if not left_out:
        return split
    if skip_missing and len(left_out) < len(split):
        return split.take([i for i in range(len(split)) if i not in left_out])
    names = " or ".join(f"--require {name}" for name, clips in empty.items() if clips)
    advice = f"give --skip-missing to leave them out, or leave out {names}"
    raise LabelError("; ".join([*_nothing_found(split.labels, empty), advice]))
