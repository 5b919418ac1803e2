"""A feature cache as one HDF5 file, with atomic commits through `cache.journal`.

Every array is contiguous and uncompressed, so that reading rows is one seek, for us as for plain `h5py`. Attributes
that are mappings or lists are JSON text.

A reader parses the file once, through h5py, into a snapshot: attributes, index arrays, and the place of each large
array in the file. Committed bytes never move, so the snapshot stays true while a writer appends, costs no HDF5 state
per read, needs no right to write, and survives a fork.
"""

import fcntl
import io
import json
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from cache import journal
from cache.errors import CacheFormatError, CacheLockedError
from cache.format import FORMAT, INDEX_ARRAYS, Array

_LIBVER = ("v108", "v108")
"""The file format of HDF5 1.8 (2008), which keeps a checksum over each piece of its metadata. In the one before, h5py's
default, a flipped byte could make segments vanish without a word, or crash the interpreter."""
_SUPERBLOCK_BYTES = 96
"""The head of the file holds the address of its end, which every commit changes."""
_ATTEMPTS = 100


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Segment:
    attributes: dict[str, Any]
    index: dict[str, Array]
    places: dict[str, _Place]


class _Snapshot:
    """The cache as of one commit."""

    def __init__(self, path: Path) -> None:
        """Parse the file; tried again where a commit came in between."""
        descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        for attempt in range(_ATTEMPTS):
            before = _state(path, descriptor)
            failure: Exception | None = None
            try:
                self._bytes = journal.Overlay(descriptor, journal.pending(path))
                with h5py.File(self._bytes, "r") as file:
                    self.attributes = _attributes(file)
                    self.segments = _parse_segments(file) if self.attributes.get("format") == FORMAT else {}
            except Exception as error:  # half of a commit may look like anything
                failure = error
            if _state(path, descriptor) == before:
                if failure is not None:
                    raise failure
                return
            time.sleep(0.001 * attempt)
        raise OSError(f"{path} changes faster than it can be read")

    def rows(self, segment: str, array: str, start: int, stop: int) -> Array:
        """Rows start:stop of one array."""
        place = self.segments[segment].places[array]
        row_bytes = place.dtype.itemsize * int(np.prod(place.shape[1:]))
        content = self._bytes.read_at(place.offset + start * row_bytes, (stop - start) * row_bytes)
        return np.frombuffer(content, place.dtype).reshape(stop - start, *place.shape[1:])


class Hdf5Container:
    """See `cache.container.Container`. One process writes at a time; reading goes on meanwhile."""

    one_writer = True

    def __init__(self, path: str) -> None:
        self.path = path
        self._path = Path(path)
        self._snapshot: _Snapshot | None = None
        self._locked: BinaryIO | None = None

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no file."""
        if not self._path.exists():
            return None
        try:
            return self._read().attributes
        except PermissionError:
            raise
        except Exception as error:  # HDF5 may raise anything over a file that is not, or no longer, what it wrote
            raise CacheFormatError(
                f"{self.path} cannot be read as HDF5 ({error}); choose another path, or restore it from a copy"
            ) from error

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Build an empty file in memory and link it into place, so that it appears whole."""
        content = io.BytesIO()
        with h5py.File(content, "w", libver=_LIBVER) as file:
            file.create_group("segments").attrs["count"] = 0
            _set_attributes(file, attributes)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.getvalue())
            if not self._path.exists():
                journal.journal_path(self._path).unlink(missing_ok=True)  # of a cache that was deleted
            os.link(temporary, self._path)
        except FileExistsError:
            return  # another process made it meanwhile; the caller compares fingerprints
        finally:
            temporary.unlink(missing_ok=True)

    def lock(self) -> None:
        """Lock the file itself, as HDF5 does, so that a second writer is refused at once."""
        if self._locked is not None:
            return
        file = self._path.open("r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise CacheLockedError(
                f"{self.path} is being written by another process, and HDF5 takes one writer; wait for it, or use "
                "a .zarr cache, which takes any number"
            ) from None
        self._locked = file
        journal.replay(self._path, file.fileno())

    def segment_names(self) -> list[str]:
        """Segments sorted by name, which starts with the time of writing."""
        return sorted(self._read().segments)

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """Attributes and index arrays of one segment."""
        segment = self._read().segments[name]
        return segment.attributes, segment.index

    def read_rows(self, segment: str, array: str, start: int, stop: int) -> Array:
        """Rows start:stop of one array."""
        return self._read().rows(segment, array, start, stop)

    def write_segment(self, name: str, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Let HDF5 write into memory, then commit the bytes through the journal."""
        self.lock()
        assert self._locked is not None
        descriptor = self._locked.fileno()
        journal.replay(self._path, descriptor)  # one is left where applying it failed in the commit before this
        overlay = journal.Overlay(descriptor)
        with h5py.File(overlay, "r+", libver=_LIBVER) as file:
            group = file.create_group(f"segments/{name}")
            for key, values in arrays.items():
                group.create_dataset(key, data=_utf8(values) if key == "ids" else values)
            _set_attributes(group, attributes)
            file["segments"].attrs["count"] = len(file["segments"])
        overlay.commit(self._path)
        self._snapshot = None

    def close(self) -> None:
        """Forget the snapshot and let go of the lock."""
        self._snapshot = None
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def _read(self) -> _Snapshot:
        if self._snapshot is None:
            self._snapshot = _Snapshot(self._path)
        return self._snapshot


def _state(path: Path, descriptor: int) -> tuple[object, ...]:
    """What differs before and after a commit, wholly or partly applied."""
    try:
        left = journal.journal_path(path).stat()
        waiting = (left.st_ino, left.st_mtime_ns)
    except FileNotFoundError:
        waiting = None
    file = os.fstat(descriptor)
    return waiting, file.st_size, file.st_mtime_ns, os.pread(descriptor, _SUPERBLOCK_BYTES, 0)


def _parse_segments(file: h5py.File) -> dict[str, _Segment]:
    """All segments; their number is stored beside them, for a damaged list may look like a shorter one."""
    segments = {name: _parse(group) for name, group in file["segments"].items()}
    if len(segments) != file["segments"].attrs["count"]:
        raise OSError(f"{len(segments)} segments are listed of {file['segments'].attrs['count']}")
    return segments


def _parse(group: Any) -> _Segment:
    index = {key: np.asarray(group[key][()]) for key in INDEX_ARRAYS if key != "ids"}
    index["ids"] = np.asarray(group["ids"].asstr()[()], dtype=object)
    places = {
        name: _Place(array.id.get_offset(), array.dtype, array.shape)
        for name, array in group.items()
        if name not in INDEX_ARRAYS
    }
    return _Segment(_attributes(group), index, places)


def _utf8(ids: Array) -> Array:
    """Fixed-length UTF-8: contiguous bytes that checksums and memory maps can see, unlike HDF5's string heap."""
    encoded = [text.encode() for text in ids]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _attributes(node: Any) -> dict[str, Any]:
    return {key: _decoded(value) for key, value in node.attrs.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        return json.loads(value) if value[:1] in ("{", "[") else value
    return value.item()


def _set_attributes(node: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        node.attrs[key] = json.dumps(value) if isinstance(value, dict | list) else value
