"""What the trials of a sweep are trained on: the cache itself, or a smaller one derived from it once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.derive.derived import OnProgress, derive
from cache.paths import StrPath
from train_head.data.labels import Labels
from train_head.data.splits import Split
from train_head.runs.inputs import LabelFiles, gather_inputs

CHEAP, SHARED = "cheap.zarr", "shared"
"""In the run folder: the derived cache, and the memory map of the trials' splits, which is removed at the end."""


@dataclass(frozen=True, kw_only=True)
class TrialData:
    """What trials are trained on; sent to each worker process, which opens it.

    Attributes:
        cache: the cache, derived or not.
        label_files: the splits "train" and "valid".
        shared: folder of the memory map that all workers read.
        clips: number of training clips, drawn with `seed`; None takes all.
        seed: of that draw.
    """

    cache: StrPath
    label_files: LabelFiles
    shared: StrPath
    clips: int | None
    seed: int


def cheap_cache(
    cache: StrPath,
    train: Labels,
    folder: Path,
    *,
    pool: int,
    pca: int | None,
    skip_missing: bool,
    on_progress: OnProgress | None = None,
) -> StrPath:
    """The cache of the trials: a derived one in the run folder where pool or pca ask for it, made once.

    Args:
        cache: of the full features.
        train: labels of the clips that the principal components are fitted on.
        folder: run folder.
        pool: this many consecutive frames become their mean.
        pca: principal components to project on; None keeps all features.
        skip_missing: fit without training clips that the cache does not hold.
        on_progress: see `cache.derive.derived.derive`.

    Raises:
        DeriveError: the recipe cannot be followed.
    """
    if pool == 1 and pca is None:
        return cache
    ids = None if pca is None else train.filenames
    place = folder / CHEAP
    derive(cache, place, pool=pool, pca=pca, train_ids=ids, skip_missing=skip_missing, on_progress=on_progress)
    return place


def open_splits(data: TrialData) -> Mapping[str, Split]:
    """Gather the trials' splits, or map what another process has gathered, and take the subset.

    Raises:
        LabelError, CacheError: a file or a clip is missing or wrong.
    """
    inputs = gather_inputs(data.cache, data.label_files, shared=data.shared)
    splits = dict(inputs.splits)
    train = splits["train"]
    if data.clips is not None and data.clips < len(train):
        rows = np.random.default_rng(data.seed).permutation(len(train))[: data.clips]
        splits["train"] = train.take(sorted(rows.tolist()))
    return splits
