"""The contract between the stages: a feature cache in Zarr or HDF5 that is never stale, never lost, never wrong.

    store = open_cache("features.zarr")
    clip = store["00001"]          # clip.frames (T, dim), clip.vad (T, 3) or None, clip.vad_pooled, clip.seconds

Imports numpy and storage libraries only, never torch; and those on first use, so that the errors cost nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cache.errors import (
    CacheError,
    CacheFormatError,
    CacheLockedError,
    CacheNotFoundError,
    CacheWriteError,
    DamagedCacheError,
    EmiError,
    StaleCacheError,
    UnknownClipError,
)

if TYPE_CHECKING:
    from cache.format import FORMAT, VERSION, Clip, Header
    from cache.reader import FeatureCache, open_cache
    from cache.writer import CacheWriter

__all__ = [
    "FORMAT",
    "VERSION",
    "CacheError",
    "CacheFormatError",
    "CacheLockedError",
    "CacheNotFoundError",
    "CacheWriteError",
    "CacheWriter",
    "Clip",
    "DamagedCacheError",
    "EmiError",
    "FeatureCache",
    "Header",
    "StaleCacheError",
    "UnknownClipError",
    "open_cache",
]

_HOMES = {
    "FORMAT": "cache.format",
    "VERSION": "cache.format",
    "Clip": "cache.format",
    "Header": "cache.format",
    "FeatureCache": "cache.reader",
    "open_cache": "cache.reader",
    "CacheWriter": "cache.writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cache' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
