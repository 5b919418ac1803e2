"""The stores that `benchmarks/cache.py` compares: emi's cache in three forms, and its peers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks._feature_clips import FeatureClips
from benchmarks._peer_stores import (
    BareMemmap,
    Hdf5DataSets,
    HuggingFace,
    Lhotse,
    NpyFiles,
    Store,
    ZarrArrays,
)


class EmiZarr(Store):
    """emi's cache in Zarr."""

    suffix: ClassVar[str] = ".zarr"

    @classmethod
    def write(cls, folder: Path, clips: FeatureClips) -> None:
        from cache import CacheWriter, Clip, Header

        header = Header(fingerprint={"dtype": "float16"}, dim=clips.dim)
        with CacheWriter(folder / f"c{cls.suffix}", header) as writer:
            for clip_id, frames in clips:
                writer.add(Clip(clip_id, frames, None, None, len(frames) * 0.02))

    def __init__(self, folder: Path) -> None:
        from cache import open_cache

        self.path = folder / f"c{self.suffix}"
        self.store = open_cache(self.path)
        self.ids = self.store.ids

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return self.store[clip_id].frames

    def load(self, ids: Sequence[str], out: np.ndarray[Any, Any]) -> None:
        self.store.load(ids, out=out)


class EmiZarrCompacted(EmiZarr):
    """The same after `emi cache compact`."""

    @classmethod
    def write(cls, folder: Path, clips: FeatureClips) -> None:
        from cache.maintenance.rewrite import compact

        super().write(folder, clips)
        compact(folder / f"c{cls.suffix}")


class EmiHdf5(EmiZarr):
    """emi's cache in HDF5."""

    suffix = ".h5"


STORES: dict[str, type[Store]] = {
    "emi Zarr": EmiZarr,
    "emi Zarr, compacted": EmiZarrCompacted,
    "emi HDF5": EmiHdf5,
    "npy file per clip": NpyFiles,
    "HDF5, data set per clip": Hdf5DataSets,
    "Zarr, array per clip": ZarrArrays,
    "Lhotse, NumpyHdf5Writer": Lhotse,
    "Hugging Face datasets": HuggingFace,
    "one memory-mapped file": BareMemmap,
}
LIBRARIES = (
    "zarr",
    "h5py",
    "datasets",
    "lhotse",
    "cache.writer",
    "cache.containers.zarr_group",
    "cache.containers.hdf5_file",
)
"""What they import when they are used."""
