"""What a storage container must do, and the choice of one by the suffix of its path."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cache.errors import CacheError, CacheFormatError
from cache.format import Array
from cache.paths import StrPath, at_home

if TYPE_CHECKING:
    from cache.index import SegmentIndex


class Rows(Protocol):
    """An array that may lie elsewhere: rows are asked for when they are written. NumPy arrays are `Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> Any:
        """As NumPy has it."""

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class NewSegment:
    """A segment to be written: its name, arrays by name (`ids` as an object array of str) and attributes."""

    name: str
    arrays: Mapping[str, Rows]
    attributes: Mapping[str, Any]


class Container(Protocol):
    """Segments in one place. Every method opens what it needs; `close` lets go of it.

    Writing a segment is atomic: after a crash at any moment a segment is there whole or not at all.
    """

    path: str
    one_writer: bool
    """Whether a second writer is refused while one writes."""
    remote: bool
    """Whether reading waits for a network, so that many reads at once pay."""

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no cache yet."""

    def create(self, attributes: Mapping[str, Any], extras: Mapping[str, Array]) -> None:
        """Make an empty cache with these root attributes and extra arrays, unless one appeared meanwhile."""

    def read_extras(self) -> dict[str, Array]:
        """The arrays that the cache was created with beside its segments."""

    def lock(self, *, alone: bool = False) -> None:
        """Take the right to write, or to write alone; raises CacheLockedError where another writer is in the way."""

    def segment_names(self, known: Collection[str] = ()) -> list[str]:
        """Committed segments, sorted by name; those in `known` were seen committed before."""

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array], dict[str, Any]]:
        """Attributes, index arrays (`format.INDEX_ARRAYS`) and `SegmentIndex.places` of one segment."""

    def read_blocks(self) -> list[bytes]:
        """The blocks of `cache.index`."""

    def write_block(self, name: str, block: bytes) -> None:
        """Store a block."""

    def read_into(self, segment: "SegmentIndex", array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        """Fill C-contiguous arrays with rows of one of a segment's arrays, each from its start on."""

    def write_segment(self, segment: NewSegment) -> None:
        """Write and commit one segment."""

    def rewrite(self, replacements: Sequence[tuple[Collection[str], NewSegment | None]]) -> None:
        """Put new segments in the place of old ones, or nothing; the lock is held alone. Blocks go with the old.

        Whatever `problems` finds with the whole is mended.
        """

    def seal(self) -> bool:
        """Finish writing, where a container has to; returns whether it wrote anything."""

    def problems(self, segment: "SegmentIndex | None" = None) -> list[str]:
        """What is wrong with stored bytes that no clip's checksum covers: of the whole, or of one segment."""

    def stored(self) -> tuple[int, int]:
        """(files or objects, bytes) that the cache takes."""

    def leftovers(self) -> tuple[int, int]:
        """(number, bytes) of segments that a crash left unfinished, or that one of these writes at the moment."""

    def close(self) -> None:
        """Release file handles and the writer's lock."""


def open_container(path: StrPath) -> Container:
    """Choose the container by suffix: `.zarr` (folder or URL) or `.h5` / `.hdf5` (file); `file://` is a path.

    Raises:
        CacheFormatError: any other suffix.
    """
    text = os.fspath(at_home(path)).rstrip("/")
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    suffix = Path(text).suffix.lower()
    if suffix == ".zarr":
        from cache.containers.zarr_group import ZarrContainer

        return ZarrContainer(text)
    if suffix in HDF5_SUFFIXES:
        from cache.containers.hdf5_file import Hdf5Container

        return Hdf5Container(text)
    raise CacheFormatError(
        f"a feature cache is named NAME.zarr or NAME.h5, got {text!r}; add the suffix of the container you want"
    )


HDF5_SUFFIXES: Sequence[str] = (".h5", ".hdf5")


def check_protocol(url: str) -> None:
    """Refuse a URL that nothing here opens.

    Raises:
        CacheError: what opens it is not installed.
        CacheFormatError: fsspec does not know its protocol.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise CacheError(f"{url}: {error} (pip install 'emi-mimicry[cloud]' has S3 and Google)") from error
    except ValueError as error:
        raise CacheFormatError(f"nothing here opens {protocol}:// ({url}); use a folder, s3://… or gs://…") from error
