"""Copy clips from caches into another: `convert` between containers and dtypes, `merge` of caches made alike."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache.errors import CacheFormatError, StaleCacheError
from cache.format import DTYPES, Header
from cache.maintenance.verify import Progress
from cache.paths import StrPath
from cache.reader import FeatureCache, open_cache
from cache.writer import CacheWriter

ROUNDED = "rounded_to"
"""Field of the fingerprint of a float32 cache whose numbers were float16 before."""


@dataclass(kw_only=True)
class TransferSummary:
    """What was copied.

    Attributes:
        written: clips.
        present: clips that the target had before.
        repeated: clips that several sources hold; the first source gives them.
    """

    written: int
    present: int
    repeated: int


def transfer(
    sources: Sequence[StrPath], target: StrPath, *, dtype: str | None = None, on_progress: Progress | None = None
) -> TransferSummary:
    """Copy every clip of the sources into the target, which is created where missing; called again, it resumes.

    Args:
        sources: caches with equal fingerprints.
        target: `NAME.zarr` or `NAME.h5`.
        dtype: of the target's frames; that of the sources by default.
        on_progress: called after each clip.

    Raises:
        StaleCacheError: fingerprints differ, or one id is clips of different length in two of the caches.
        DamagedCacheError: a clip does not match its checksum; what was copied before is in the target.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(open_cache(path)) for path in sources]
        first = stores[0]
        for store in stores[1:]:
            first.header.must_match(store.header, store.path)
            _same_extras(first, store)
        owners, repeated = _owners(stores)
        header = _header(first.header, dtype or str(first.header.dtype))
        writer = stack.enter_context(CacheWriter(target, header, first.extras))
        with open_cache(target) as present:
            _same_extras(first, present)
            _owners([*stores, present])
            for store in stores:
                refuse_other_media(store, present)
        todo = {clip_id: store for clip_id, store in owners.items() if clip_id not in writer.done}
        for done, (clip_id, store) in enumerate(todo.items(), 1):
            clip = store[clip_id]
            writer.add(clip, store.medium(clip_id))
            if on_progress:
                on_progress(done, len(todo), header.duration(clip))
    return TransferSummary(written=len(todo), present=len(owners) - len(todo), repeated=repeated)


def refuse_other_media(source: FeatureCache, target: FeatureCache) -> None:
    """Refuse to copy beside clips that were made from other media than those of the same ids in the source.

    Raises:
        StaleCacheError: there are such clips; names the first.
    """
    known = [(source.medium(clip_id), target.medium(clip_id), clip_id) for clip_id in target.ids if clip_id in source]
    other = [clip_id for a, b, clip_id in known if a and b and (a.size, a.digest) != (b.size, b.digest)]
    if other:
        clips = "1 clip" if len(other) == 1 else f"{len(other)} clips"
        raise StaleCacheError(
            f"{clips} ({', '.join(other[:5])}{', …' if len(other) > 5 else ''}) were made from other media in "
            f"{source.path} than in {target.path}; write into a new cache"
        )


def _same_extras(one: FeatureCache, other: FeatureCache) -> None:
    if one.extras_crc32c != other.extras_crc32c:
        raise StaleCacheError(
            f"{one.path} and {other.path} were derived with transforms that are not equal to the last bit; derive one "
            "cache from all their clips"
        )


def _owners(stores: Sequence[FeatureCache]) -> tuple[dict[str, FeatureCache], int]:
    """The first store that holds each clip, and how many clips more than one holds."""
    owners: dict[str, FeatureCache] = {}
    seconds: dict[str, float] = {}  # NaN where no store knows
    repeated: set[str] = set()
    for store in stores:
        for clip_id, length in zip(store.ids, store.seconds.tolist(), strict=True):
            owner, before = owners.setdefault(clip_id, store), seconds.get(clip_id, math.nan)
            if not math.isnan(before) and not math.isnan(length) and before != length:
                raise StaleCacheError(
                    f"clip {clip_id!r} is {before:.2f} s long in {owner.path} and {length:.2f} s in {store.path}: two "
                    "different media have one id; extract one of them under another folder"
                )
            seconds[clip_id] = length if math.isnan(before) else before
            if owner is not store:
                repeated.add(clip_id)
    return owners, len(repeated)


def _header(source: Header, dtype: str) -> Header:
    """The header for another dtype; what float16 has rounded stays so, and the fingerprint says it."""
    if dtype not in DTYPES:
        raise CacheFormatError(f"the dtype of a cache is {' or '.join(DTYPES)}, got {dtype!r}")
    fingerprint: dict[str, Any] = {**source.fingerprint, "dtype": dtype}
    if np.dtype(dtype).itemsize > source.dtype.itemsize:
        fingerprint[ROUNDED] = str(source.dtype)
    elif dtype == fingerprint.get(ROUNDED) and dtype != str(source.dtype):
        del fingerprint[ROUNDED]
    return replace(source, fingerprint=fingerprint)
