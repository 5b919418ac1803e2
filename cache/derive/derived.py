"""A small cache made from a large one, so that many heads can be tried on a CPU: pooled, projected, standardised.

The fingerprint of a derived cache is that of its source with the new storage dtype and one more field:

    "derived": {"from": digest of the source's fingerprint, "from_dtype": its storage dtype, "pool", "standardise",
                "pool_stats" where they are not the mean alone, "pca" where components were asked for,
                "fitted_on": {"clips", "sha256"} where anything was fitted}

so that caches made by other recipes, or fitted on other clips, are refused together as any others are. What was fitted
lies in the cache itself (`FeatureCache.extras`), written when it is made: whoever continues filling it applies that.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache import fingerprint as fp
from cache.derive.transform import STATS, Transform, training_set
from cache.errors import CacheNotFoundError, DeriveError
from cache.format import DTYPES, Clip, Header
from cache.ids import match_ids
from cache.maintenance.transfer import refuse_other_media
from cache.paths import StrPath
from cache.reader import FeatureCache, open_cache
from cache.writer import CacheWriter

MAX_POOL = (1 << 31) - 1
"""Frames in a window at most: 497 days at 50 Hz; NumPy cannot make windows of 2^63 frames, even of none."""

OnProgress = Callable[[str, int, int, float], None]
"""Called with "fitting" or "deriving", clips handled, clips to handle, and seconds of features of the one just done."""


@dataclass(frozen=True, kw_only=True)
class DeriveSummary:
    """What a run did.

    Attributes:
        cache: where.
        header: of the derived cache.
        written: clips.
        present: clips of the source that the cache had before.
        fitted: whether this run fitted the transform; else it was stored already, or nothing was to be fitted.
        missing: training clips that the source does not hold (with `skip_missing`).
    """

    cache: str
    header: Header
    written: int
    present: int
    fitted: bool
    missing: int


def derive(
    source: StrPath,
    target: StrPath,
    *,
    pool: int = 1,
    pool_stats: Sequence[str] = STATS[:1],
    pca: int | None = None,
    standardise: bool = False,
    dtype: str = "float16",
    train_ids: Collection[str] | None = None,
    skip_missing: bool = False,
    on_progress: OnProgress | None = None,
) -> DeriveSummary:
    """Derive all clips that the target lacks; called again, it resumes with the transform that it has stored.

    One clip is in memory at a time, and while fitting a block of frames and a (dim, dim) matrix.

    Args:
        source: cache of extracted features.
        target: `NAME.zarr` or `NAME.h5`, created where missing.
        pool: this many consecutive frames become one.
        pool_stats: "mean", "std" or both, which stand side by side in it.
        pca: number of principal components to project on, or None.
        standardise: bring every output to unit variance.
        dtype: storage dtype of the frames, float16 or float32.
        train_ids: the clips that `pca` and `standardise` are fitted on, so that nothing is learnt from the others, by
            names as `cache.ids.match_ids` reads them.
        skip_missing: fit without those of them that the source does not hold, instead of refusing.
        on_progress: called after each clip.

    Raises:
        DeriveError: the recipe cannot be followed; says what to give. Nothing was written then.
        StaleCacheError: the target was derived otherwise, or from other features; names the fields.
        DamagedCacheError: a clip of the source, or the stored transform, does not match its checksum.
    """
    with open_cache(source) as store:
        recipe: dict[str, Any] = {"pool": pool, "standardise": standardise}
        recipe |= {} if pca is None else {"pca": pca}
        recipe |= {} if tuple(pool_stats) == ("mean",) else {"pool_stats": list(pool_stats)}
        _check_recipe(store, recipe, dtype)
        train, missing = _training_clips(store, train_ids, recipe, skip_missing)
        header = _derived_header(store, recipe, train, dtype)
        transform = _stored_transform(target, header)
        fitted = transform is None and bool(train)
        if transform is None:
            clips = _reported(store, train, "fitting", on_progress)
            transform = Transform.fit(clips, pool, pca, standardise, tuple(pool_stats))
        with CacheWriter(target, header, transform.to_arrays()) as writer:
            # another process may have made the cache meanwhile
            transform = (_stored_transform(target, header) if fitted else None) or transform
            with open_cache(target) as present:
                refuse_other_media(store, present)
            todo = [clip_id for clip_id in store.ids if clip_id not in writer.done]
            for clip in _reported(store, todo, "deriving", on_progress):
                writer.add(transform.apply(clip), store.medium(clip.id))
        return DeriveSummary(
            cache=os.fspath(target),
            header=header,
            written=len(todo),
            present=len(store) - len(todo),
            fitted=fitted,
            missing=missing,
        )


def transform_of(store: FeatureCache) -> Transform | None:
    """The transform that a derived cache was made with; None for a cache of extracted features.

    Raises:
        CacheFormatError, DamagedCacheError: what was fitted is not stored there whole.
    """
    recipe = store.fingerprint.get("derived")
    return None if recipe is None else Transform.from_arrays(store.extras, recipe)


def source_header(header: Header, transform: Transform) -> Header:
    """What a derived cache's header says about the features it was made from: how to extract more of them."""
    recipe = header.fingerprint["derived"]
    kept = {key: value for key, value in header.fingerprint.items() if key != "derived"}
    return replace(
        header,
        fingerprint=kept | {"dtype": recipe["from_dtype"]},
        dim=(header.dim if transform.mean is None else len(transform.mean)) // len(transform.stats),
        hop_seconds=None if header.hop_seconds is None else header.hop_seconds / recipe["pool"],
    )


def describe(recipe: Mapping[str, Any]) -> str:
    """A recipe (`fingerprint["derived"]`) in words."""
    stats = " and ".join({"mean": "means", "std": "standard deviations"}[s] for s in recipe.get("pool_stats", ["mean"]))
    steps = [f"{stats} of {recipe['pool']} frames"] if recipe["pool"] > 1 or "pool_stats" in recipe else []
    steps += [f"{recipe['pca']} principal components"] if "pca" in recipe else []
    steps += ["unit variance"] if recipe["standardise"] else []
    fitted = f" (fitted on {recipe['fitted_on']['clips']} clips)" if "fitted_on" in recipe else ""
    return (", ".join(steps) or "frames as they were") + fitted


def _check_recipe(store: FeatureCache, recipe: Mapping[str, Any], dtype: str) -> None:
    if "derived" in store.fingerprint:
        raise DeriveError(f"{store.path} is derived itself; derive from the cache of extracted features it came from")
    if not 1 <= recipe["pool"] <= MAX_POOL:
        raise DeriveError(f"--pool takes 1 to {MAX_POOL} frames, got {recipe['pool']}")
    stats = recipe.get("pool_stats", ["mean"])
    if not stats or not set(stats) <= set(STATS) or len(set(stats)) < len(stats):
        raise DeriveError(
            f"--pool-stats takes {', '.join(STATS)} or both with a comma between, got {','.join(stats)!r}"
        )
    dim = store.dim * len(stats)
    if not 1 <= recipe.get("pca", 1) <= dim:
        raise DeriveError(f"--pca {recipe['pca']}: {store.path} has {dim} features per frame; give 1 to {dim}")
    if dtype not in DTYPES:
        raise DeriveError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def _training_clips(
    store: FeatureCache, train_ids: Collection[str] | None, recipe: Mapping[str, Any], skip_missing: bool
) -> tuple[list[str], int]:
    """The sorted ids to fit on, and how many more the source does not hold; none where nothing is to be fitted."""
    if "pca" not in recipe and not recipe["standardise"]:
        return [], 0
    if train_ids is None:
        raise DeriveError(
            "--pca and --standardise are fitted on training clips only, or the others would leak into the features; "
            "give --train CSV"
        )
    wanted = sorted(set(train_ids))
    found = match_ids(wanted, store)
    there = sorted(clip_id for clip_id in found if clip_id is not None)
    missing = [name for name, clip_id in zip(wanted, found, strict=True) if clip_id is None]
    if not there:
        raise DeriveError(f"{store.path} holds none of the {len(wanted)} training clips; give the --train of its clips")
    if missing and not skip_missing:
        raise DeriveError(
            f"{len(missing)} of the {len(wanted)} training clips are not in {store.path} (first: "
            f"{', '.join(missing[:5])}); extract them, or give --skip-missing to fit without them"
        )
    return there, len(missing)


def _derived_header(store: FeatureCache, recipe: Mapping[str, Any], train: Sequence[str], dtype: str) -> Header:
    derived = {"from": fp.digest(store.fingerprint), "from_dtype": str(store.header.dtype), **recipe}
    if train:
        derived["fitted_on"] = {"clips": len(train), "sha256": training_set({i: store.checksum(i) for i in train})}
    return replace(
        store.header,
        fingerprint=store.fingerprint | {"dtype": dtype, "derived": derived},
        dim=recipe.get("pca", store.dim * len(recipe.get("pool_stats", STATS[:1]))),
        hop_seconds=None if store.hop_seconds is None else store.hop_seconds * recipe["pool"],
        provenance={**store.header.provenance, "derived_from": store.path, "numpy": np.__version__},
    )


def _stored_transform(target: StrPath, header: Header) -> Transform | None:
    """The transform of a cache that exists, which must be the one that is asked for; None where there is no cache."""
    with suppress(CacheNotFoundError), open_cache(target) as store:
        header.must_match(store.header, store.path)
        return transform_of(store)
    return None


def _reported(store: FeatureCache, ids: Sequence[str], stage: str, on_progress: OnProgress | None) -> Iterator[Clip]:
    for done, clip_id in enumerate(ids, 1):
        clip = store[clip_id]
        yield clip
        if on_progress:
            on_progress(stage, done, len(ids), store.header.duration(clip))
