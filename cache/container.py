"""What a storage container must do, and the choice of one by the suffix of its path."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cache.errors import CacheFormatError
from cache.format import Array

StrPath = str | os.PathLike[str]


class Container(Protocol):
    """Segments in one place. Every method opens what it needs; `close` lets go of it.

    Writing a segment is atomic: after a crash at any moment a segment is there whole or not at all.
    """

    path: str
    one_writer: bool
    """Whether a second writer is refused while one writes."""

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no cache yet."""

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Make an empty cache with these root attributes; does nothing where one appeared meanwhile."""

    def lock(self) -> None:
        """Take the right to write; raises CacheLockedError where another writer excludes this one."""

    def segment_names(self) -> list[str]:
        """Committed segments in the order in which they were written."""

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """Attributes and the index arrays (`format.INDEX_ARRAYS`) of one segment."""

    def read_rows(self, segment: str, array: str, start: int, stop: int) -> Array:
        """Rows start:stop of one array of one segment."""

    def write_segment(self, name: str, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Write and commit one segment."""

    def close(self) -> None:
        """Release file handles and the writer's lock."""


def open_container(path: StrPath) -> Container:
    """Choose the container by suffix: `.zarr` (folder or URL) or `.h5` / `.hdf5` (file).

    Raises:
        CacheFormatError: any other suffix.
    """
    text = os.fspath(path).rstrip("/")
    suffix = Path(text).suffix.lower()
    if suffix == ".zarr":
        from cache.zarr_container import ZarrContainer

        return ZarrContainer(text)
    if suffix in HDF5_SUFFIXES:
        from cache.hdf5_container import Hdf5Container

        return Hdf5Container(text)
    raise CacheFormatError(
        f"a feature cache is named NAME.zarr or NAME.h5, got {text!r}; add the suffix of the container you want"
    )


HDF5_SUFFIXES: Sequence[str] = (".h5", ".hdf5")
