"""A feature cache as a Zarr v3 group: a folder, or any URL that zarr opens through fsspec.

A segment's arrays are written first and its group metadata (`segments/<name>/zarr.json`) last: that one put is the
commit, atomic on a local disk (zarr renames a temporary file) as on an object store. Without it, neither this reader
nor plain zarr sees the segment, so what a crash leaves behind is invisible. Each array is a few shards, one file each.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from zarr.core.sync import sync

from cache.errors import CacheFormatError
from cache.format import INDEX_ARRAYS, Array

CHUNK_BYTES = 1 << 20
"""Size of an inner chunk of a shard: what one random clip read fetches at least."""
SHARD_BYTES = 4 << 20
"""Size of a shard, which is one file or object; zarr holds it three times while it writes it."""


class ZarrContainer:
    """See `cache.container.Container`. Any number of processes may write at once, each its own segments."""

    one_writer = False

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = None if "://" in path else Path(path)
        self._arrays: dict[tuple[str, str], zarr.Array[Any]] = {}

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no Zarr group."""
        if self._local is not None and not self._local.exists():
            return None
        if self._local is not None and not self._local.is_dir():
            raise CacheFormatError(f"{self.path} is a file, and a Zarr feature cache is a folder; choose another path")
        try:
            return dict(self._group("r").attrs)
        except (zarr.errors.GroupNotFoundError, FileNotFoundError):
            if self._local is not None and not _left_by_create(self._local):
                raise CacheFormatError(
                    f"{self.path} exists but is no Zarr group; choose another path, or remove it yourself"
                ) from None
            return None
        except (ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as error:
            raise CacheFormatError(
                f"{self.path}/zarr.json cannot be read ({error}); restore it from a copy of the cache"
            ) from error

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Write the root group; a concurrent creator writes the same bytes, or is found out by the caller."""
        with contextlib.suppress(zarr.errors.ContainsGroupError):
            zarr.create_group(f"{self.path}/segments", zarr_format=3)
        with contextlib.suppress(zarr.errors.ContainsGroupError):
            zarr.create_group(self.path, attributes=dict(attributes), zarr_format=3)

    def lock(self) -> None:
        """Nothing to do: writers own their segments."""

    def segment_names(self) -> list[str]:
        """Committed segments: the members of `segments` that have group metadata."""

        store = self._group("r").store

        async def committed() -> list[str]:
            names = [name async for name in store.list_dir("segments/")]
            there = await asyncio.gather(*(store.exists(f"segments/{name}/zarr.json") for name in names))
            return [name for name, exists in zip(names, there, strict=True) if exists]

        return sorted(sync(committed()))

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """Attributes and index arrays of one segment."""
        attributes = dict(zarr.open_group(self.path, path=f"segments/{name}", mode="r").attrs)
        return attributes, {array: np.asarray(self._array(name, array)[:]) for array in INDEX_ARRAYS}

    def read_rows(self, segment: str, array: str, start: int, stop: int) -> Array:
        """Rows start:stop of one array."""
        return np.asarray(self._array(segment, array)[start:stop])

    def write_segment(self, name: str, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Write the arrays, flush them to the disk, then put the group metadata."""
        prefix = f"segments/{name}"
        try:
            for key, values in arrays.items():
                _write_array(f"{self.path}/{prefix}/{key}", values)
            if self._local is not None:
                _fsync_tree(self._local / prefix)
        except BaseException:
            if self._local is not None:
                shutil.rmtree(self._local / prefix, ignore_errors=True)  # a full disk needs the room
            raise
        zarr.create_group(f"{self.path}/{prefix}", attributes=dict(attributes), zarr_format=3)
        if self._local is not None:
            _fsync_tree(self._local / prefix, files=("zarr.json",))
            _fsync(self._local / "segments")

    def close(self) -> None:
        """Forget open arrays."""
        self._arrays.clear()

    def _group(self, mode: Any) -> zarr.Group:
        return zarr.open_group(self.path, mode=mode, zarr_format=3)

    def _array(self, segment: str, name: str) -> "zarr.Array[Any]":
        key = (segment, name)
        if key not in self._arrays:
            self._arrays[key] = zarr.open_array(self.path, path=f"segments/{segment}/{name}", mode="r")
        return self._arrays[key]


def _left_by_create(folder: Path) -> bool:
    """Whether all that lies here is what an interrupted `create` leaves: it puts the root's metadata last."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".partial")
    return all(name in ("segments", "segments/zarr.json") for name in names)


def _write_array(path: str, values: Array) -> None:
    """One array in shards of chunks of about CHUNK_BYTES, one shard after the other; strings as one chunk.

    The path is opened as a store of its own: created inside the group, zarr would write the metadata of the parent
    groups too, and the parent's metadata is the commit.
    """
    if values.dtype == object:
        values = values.astype(np.dtypes.StringDType())
        step, chunks, shards = len(values), values.shape, None
    else:
        row_bytes = max(1, values[:1].nbytes)
        rows = min(len(values), max(1, CHUNK_BYTES // row_bytes))
        step = min(-(-len(values) // rows), max(1, SHARD_BYTES // (rows * row_bytes))) * rows
        chunks, shards = (rows, *values.shape[1:]), (step, *values.shape[1:])
    array = zarr.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        shards=shards,
        compressors=None,
        zarr_format=3,
        config={"write_empty_chunks": True},
    )
    for start in range(0, len(values), step):
        array[start : start + step] = values[start : start + step]


def _fsync_tree(folder: Path, files: tuple[str, ...] | None = None) -> None:
    """Flush a folder's files and directories to the disk, so that a commit after it survives a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if files is None or name in files:
                _fsync(Path(parent) / name)
        _fsync(Path(parent))
        if files is not None:
            break


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
