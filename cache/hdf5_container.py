"""A feature cache as one HDF5 file, with atomic commits through `cache.journal`.

Every array is contiguous and uncompressed, so that a plain `h5py` read is one seek. Attributes that are mappings or
lists are JSON text.
"""

import fcntl
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from cache import journal
from cache.errors import CacheFormatError, CacheLockedError
from cache.format import INDEX_ARRAYS, Array


class Hdf5Container:
    """See `cache.container.Container`. One process writes at a time; reading goes on meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._path = Path(path)
        self._readable: h5py.File | None = None
        self._locked: BinaryIO | None = None

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no file."""
        if not self._path.exists():
            return None
        try:
            return _attributes(self._reader())
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, PermissionError):
                raise
            raise CacheFormatError(
                f"{self.path} cannot be opened as HDF5 ({error}); choose another path, or restore it from a copy"
            ) from error

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Build an empty file in memory and link it into place, so that it appears whole."""
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            file.create_group("segments")
            _set_attributes(file, attributes)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.getvalue())
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
        journal.replay(self._path, file)

    def segment_names(self) -> list[str]:
        """Segments sorted by name, which starts with the time of writing."""
        return sorted(self._reader()["segments"])

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """Attributes and index arrays of one segment."""
        group = self._reader()[f"segments/{name}"]
        arrays = {key: np.asarray(group[key][()]) for key in INDEX_ARRAYS if key != "ids"}
        arrays["ids"] = np.asarray(group["ids"].asstr()[()], dtype=object)
        return _attributes(group), arrays

    def read_rows(self, segment: str, array: str, start: int, stop: int) -> Array:
        """Rows start:stop of one array."""
        return np.asarray(self._reader()[f"segments/{segment}/{array}"][start:stop])

    def write_segment(self, name: str, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Let HDF5 write into memory, then commit the bytes through the journal."""
        self.lock()
        assert self._locked is not None
        overlay = journal.Overlay(self._locked)
        with h5py.File(overlay, "r+") as file:
            group = file.create_group(f"segments/{name}")
            for key, values in arrays.items():
                group.create_dataset(key, data=_utf8(values) if key == "ids" else values)
            _set_attributes(group, attributes)
        overlay.commit(self._path)
        self._close_reader()

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._close_reader()
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def _reader(self) -> h5py.File:
        if self._readable is None:
            if self._locked is None:
                journal.recover(self._path)
            # No HDF5 lock: a committed segment never changes, and NFS mounts often refuse locks to readers.
            self._readable = h5py.File(self._path, "r", locking=False)
        return self._readable

    def _close_reader(self) -> None:
        if self._readable is not None:
            self._readable.close()
            self._readable = None


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
