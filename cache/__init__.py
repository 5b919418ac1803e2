"""The contract between the stages: a feature cache in Zarr or HDF5 that is never stale, never lost, never wrong.

    store = open_cache("features.zarr")
    clip = store["00001"]          # clip.frames (T, dim), clip.vad (T, 3) or None, clip.vad_pooled, clip.seconds

Imports numpy and storage libraries only, never torch.
"""

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
