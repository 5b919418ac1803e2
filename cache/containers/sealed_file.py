"""Read and write a whole HDF5 file of a cache: `cache.containers.hdf5_file` says when.

Every array is contiguous and uncompressed, so that reading rows is one seek, for us as for plain `h5py`. Attributes
that are mappings, lists or null are JSON text.

The file is parsed once, through h5py, into attributes, index arrays, and the place of each large array in the file.
After that, reads need no HDF5 state, no right to write, and survive a fork.
"""

import contextlib
import contextvars
import hashlib
import json
import math
import os
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache import fingerprint as fp
from cache.containers import old_journal
from cache.containers.container import NewSegment, SegmentIndex
from cache.containers.file_rows import copy_from_file, row_views
from cache.containers.hdf5_bytes import Hdf5Bytes, reading_strings
from cache.errors import DamagedCacheError
from cache.format import FORMAT, INDEX_ARRAYS, Array
from cache.index import checked_index, pack, places_in, unpack
from cache.system.disk import open_binary

_LIBVER = ("v108", "v108")
"""The file format of HDF5 1.8 (2008), with a checksum over each piece of its metadata. In the one before, h5py's
default, a flipped byte could make segments vanish unnoticed, or crash the interpreter."""
_NULL = "null"
"""JSON of None, which HDF5 has no attribute for."""
_COPY_BYTES = 16 << 20
"""Bytes of an array copied at a time."""
Parsed = tuple[dict[str, Any], dict[str, Array], dict[str, Any]]
"""What `Container.read_segment` returns."""


class SealedFile:
    """An open file, parsed; it stays readable after another was renamed over it.

    Attributes:
        attributes: of the root.
        names: of the segments, in order, as the keys of a mapping.
        blocks: of the index (`cache.index`).
        places: of the large arrays of each segment: array -> [offset in the file, shape, dtype].
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = open_binary(path)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = _state_of(os.fstat(self._descriptor))
        self._extents = old_journal.pending(path, self._descriptor)
        with self.open() as file:
            self.attributes = _attributes(file)
            ours = self.attributes.get("format") == FORMAT
            self.names = dict.fromkeys(_segment_names(file)) if ours else {}
            self.blocks = _blocks(file) if ours else []
            self.places = {name: places for block in self.blocks for name, places in places_in(block).items()}
            for name in self.names.keys() - self.places.keys():
                with contextlib.suppress(Exception):  # raised where the segment is asked for
                    self.places[name] = _places(file[f"segments/{name}"])

    def open(self) -> h5py.File:
        """Open it with h5py."""
        return h5py.File(Hdf5Bytes(self._descriptor, self._extents), "r")

    def is_at(self, path: Path) -> bool:
        """Return whether this is still the file at a path, and was not overwritten in place, as `cp` does."""
        return _state_of(path.stat()) == self._state

    def identity(self) -> str:
        """Return a hash of its header and its segments' names."""
        content = json.dumps([self.attributes.get("header_crc32c"), *sorted(self.names)])
        return hashlib.sha256(content.encode()).hexdigest()

    def read_extras(self) -> dict[str, Array]:
        """Read the arrays of the group `extras`."""
        with self.open() as file:
            return {name: np.asarray(a[()]) for name, a in file["extras"].items()} if "extras" in file else {}

    def read_segment(self, name: str) -> Parsed:
        """Read attributes, index arrays and places of one segment."""
        with self.open() as file:
            return _parse(file[f"segments/{name}"])

    def read_into(self, segment: str, array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        """See `Container.read_into`."""
        offset, shape, dtype = self.places[segment][array]
        row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
        places = [(offset + row * row_bytes, view) for row, view in row_views(shape, np.dtype(dtype), starts, outs)]
        if self._extents:
            content = Hdf5Bytes(self._descriptor, self._extents)
            for at, view in places:
                view[:] = content.read_at(at, len(view))
        else:
            copy_from_file(self._descriptor, places)


def _state_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def write_sealed(
    path: Path,
    old: SealedFile | None,
    attributes: Mapping[str, Any],
    extras: Mapping[str, Array],
    segments: Iterable[NewSegment],
    *,
    without: Collection[str] = (),
    blocks: Sequence[bytes] = (),
    where: str = "",
) -> None:
    """Write a file with the segments of an old one, then new ones, and one block that indexes all of them.

    Args:
        path: of the new file.
        old: to copy from, array by array as stored; what is damaged stays so, under the checksums it was written with.
        attributes: of the root.
        extras: arrays beside the segments.
        segments: to add, each asked for when it is written.
        without: segments to leave out.
        blocks: of the index so far; they know the clips of a segment whose own index was damaged since.
        where: path of the cache, for the error.

    Raises:
        DamagedCacheError: a block knows a segment that is in neither place; it would be forgotten.
    """
    covered: dict[str, SegmentIndex] = {}
    for block in blocks:
        with contextlib.suppress(ValueError):  # damaged: its segments are indexed from what they hold
            covered |= {segment.name: segment for segment in unpack(block)}
    with h5py.File(path, "w", libver=_LIBVER) as file:
        _set_attributes(file, attributes)
        for name, values in extras.items():
            file.create_dataset(f"extras/{name}", data=values)
        group = file.create_group("segments")
        if old is not None:
            with old.open() as source:
                for name in old.names:
                    if name not in without:
                        _attributes(source[f"segments/{name}"])  # copied without a check of its strings
                        source.copy(source[f"segments/{name}"], group, name=name)
        for segment in segments:
            _write_segment(group.create_group(segment.name), segment)
        group.attrs["count"] = len(group)
        if lost := covered.keys() - set(group) - set(without):
            raise DamagedCacheError(
                f"{where}: segment {min(lost)} is gone; `emi cache verify` names its clips, and `emi cache repair` on "
                "the cache drops them"
            )
        if index := _index(group, covered, fp.digest(attributes["fingerprint"])):
            file.create_dataset("index/all", data=np.frombuffer(pack(index), np.uint8))


def _index(group: Any, covered: Mapping[str, SegmentIndex], digest: str) -> list[SegmentIndex]:
    """The index of every segment in a group, but of those whose index is damaged."""
    index = []
    for name in group:
        if name in covered:
            index.append(replace(covered[name], places=_places(group[name])))
        else:
            with contextlib.suppress(ValueError):  # found when the cache is opened
                index.append(checked_index(name, *_parse(group[name]), digest))
    return index


def _write_segment(group: Any, segment: NewSegment) -> None:
    """Write arrays that may not fit in memory."""
    for key, values in segment.arrays.items():
        if key == "ids":
            # Fixed-length UTF-8: contiguous bytes that checksums and memory maps can see, unlike HDF5's string heap.
            ids = [text.encode() for text in values[:]]
            group.create_dataset(key, data=np.array(ids, h5py.string_dtype("utf-8", max(1, *map(len, ids)))))
            continue
        array = group.create_dataset(key, shape=values.shape, dtype=values.dtype)
        rows = max(1, _COPY_BYTES // max(1, array.dtype.itemsize * math.prod(values.shape[1:])))
        for start in range(0, values.shape[0], rows):
            array[start : start + rows] = values[start : start + rows]
    _set_attributes(group, segment.attributes)


def _segment_names(file: h5py.File) -> list[str]:
    """All segments; their number is stored beside them, since a damaged list may look like a shorter one."""
    names = list(file["segments"])
    if len(names) != file["segments"].attrs["count"]:
        raise OSError(f"{len(names)} segments are listed of {file['segments'].attrs['count']}")
    return names


def _blocks(file: h5py.File) -> list[bytes]:
    """Read the data sets of `index`; one empty block where HDF5 cannot, over which it may raise anything."""
    try:
        return [bytes(block[()]) for block in file["index"].values()] if "index" in file else []
    except Exception:
        return [b""]


def _parse(group: Any) -> Parsed:
    index = {key: np.asarray(group[key][()]) for key in INDEX_ARRAYS if key != "ids"}
    index["ids"] = np.asarray(group["ids"].asstr()[()], dtype=object)
    return _attributes(group), index, _places(group)


def _places(group: Any) -> dict[str, Any]:
    return {
        name: [array.id.get_offset(), list(array.shape), array.dtype.str]
        for name, array in group.items()
        if name not in INDEX_ARRAYS
    }


def _attributes(node: Any) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        reading_strings.set(True)
        return {key: _decoded(value) for key, value in node.attrs.items()}

    return contextvars.copy_context().run(read)


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        return json.loads(value) if value[:1] in ("{", "[") or value == _NULL else value
    return value.item()


def _set_attributes(node: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        node.attrs[key] = json.dumps(value) if isinstance(value, dict | list | None) else value
