"""A feature cache as a Zarr v3 group: a folder, or any URL that zarr opens through fsspec.

A segment's arrays are written first and its group metadata (`segments/<name>/zarr.json`) last: that one put is the
commit, atomic on a local disk (zarr renames a temporary file) as on an object store. Without it, neither this reader
nor plain zarr sees the segment, so what a crash leaves behind is invisible. Each array is a few shards, one file each.

A segment that takes the place of others names them in its attribute `replaces`: its commit is theirs to vanish, and
their files are removed afterwards.
"""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
import zarr.errors
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import GroupMetadata
from zarr.core.sync import sync

from cache.containers.container import Container, NewSegment, Rows, SegmentIndex, is_segment_name, lock_folder
from cache.containers.zarr_rows import RowLayout, read_rows, row_layout, shard_problems
from cache.errors import CacheError, CacheFormatError
from cache.format import INDEX_ARRAYS, NUMBERS, Array
from cache.sources import SOURCES
from cache.system.disk import measured
from cache.system.disk import sync as flush

GROUPS = ("segments", "index")
PARTIAL = f"zarr.{'[0-9a-f]' * 32}.partial"
"""Files that zarr has not yet renamed to the metadata of a group."""
CHUNK_BYTES = 1 << 20
"""Size of an inner chunk of a shard: what one random clip read fetches at least."""
SHARD_BYTES = 4 << 20
"""Size of a shard, which is one file or object; zarr holds it three times while it writes it."""
REWRITTEN_SHARD_BYTES = 64 << 20
"""The same where segments are joined: a sixteenth of the files."""


class ZarrContainer(Container):
    """See `cache.containers.container.Container`. Any number of processes may write at once, each its own segments."""

    one_writer = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.remote = "://" in path
        if self.remote:
            check_protocol(path)
        self._local = None if self.remote else Path(path)
        self._opened: dict[tuple[str, str], RowLayout | zarr.Array[Any]] = {}
        self._lock: object = None  # held while it is referenced

    def read_attributes(self) -> dict[str, Any] | None:
        if self._local is not None and not self._local.exists():
            return None
        if self._local is not None and not self._local.is_dir():
            raise CacheFormatError(f"{self.path} is a file, and a Zarr feature cache is a folder; choose another path")
        for _ in range(2):  # another process may make it between the first look and the second
            try:
                return dict(self._group().attrs)
            except (zarr.errors.GroupNotFoundError, FileNotFoundError):
                if self._local is None or _left_by_create(self._local):
                    return None
            except (ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as error:
                raise CacheFormatError(
                    f"{self.path}/zarr.json cannot be read ({error}); restore it from a copy of the cache"
                ) from error
            except Exception as error:  # the clients of object stores have classes of their own
                if not self.remote:
                    raise
                raise CacheError(
                    f"{self.path} cannot be read: {' '.join(str(error).split())}; check the network, and the address "
                    "and credentials in the environment (docs/many-machines.md)"
                ) from error
        raise CacheFormatError(f"{self.path} exists but is no Zarr group; choose another path, or remove it yourself")

    def create(self, attributes: Mapping[str, Any], extras: Mapping[str, Array]) -> None:
        """Write the root group last; a concurrent creator writes the same bytes, or is found out by the caller."""
        for group in GROUPS:
            with contextlib.suppress(zarr.errors.ContainsGroupError):
                zarr.create_group(f"{self.path}/{group}", zarr_format=3)
        if extras:  # in the place of those of a creation that was cut off before it put the root
            zarr.create_group(f"{self.path}/extras", zarr_format=3, overwrite=True)
        for name, values in extras.items():
            _write_array(f"{self.path}/extras/{name}", values)
        with contextlib.suppress(zarr.errors.ContainsGroupError):
            zarr.create_group(self.path, attributes=dict(attributes), zarr_format=3)
        if self._local is not None:
            for place in (*self._local.rglob("zarr.json"), self._local, self._local.parent):
                flush(place)

    def read_extras(self) -> dict[str, Array]:
        root = self._group()
        return {name: np.asarray(a[:]) for name, a in root["extras"].arrays()} if "extras" in root else {}  # type: ignore[union-attr]

    def lock(self, *, alone: bool = False) -> None:
        """Share the folder with other writers, or have it alone; a URL cannot be locked, nor can some file systems."""
        if self._local is not None and (self._lock is None or alone):
            self._lock = None  # releases it
            self._lock = lock_folder(
                self._local,
                f"{self.path} is being {'written' if alone else 'compacted or repaired'} by another process",
                "; wait for it, then run this again",
                alone=alone,
            )

    def segment_names(self, known: Collection[str] = ()) -> list[str]:
        store = self._group().store

        async def committed() -> list[str]:
            names = await _members(store, "segments/")
            new = [name for name in names if name not in known]
            there = await asyncio.gather(*(store.exists(f"segments/{name}/zarr.json") for name in new))
            absent = {name for name, exists in zip(new, there, strict=True) if not exists}
            if absent and not absent <= set(await _members(store, "segments/")):
                # `compact` has just put another in their place
                return await committed()
            return [name for name in names if name not in absent]

        return sorted(sync(committed()))

    def read_segment(self, name: str) -> tuple[dict[str, Any], dict[str, Array], dict[str, Any]]:
        attributes = dict(zarr.open_group(self.path, path=f"segments/{name}", mode="r").attrs)
        return attributes, {array: np.asarray(self._array(name, array)[:]) for array in INDEX_ARRAYS}, {}

    def whole_segment(self, name: str) -> NewSegment:
        """Return a segment with all its arrays, to be written elsewhere."""
        group = zarr.open_group(self.path, path=f"segments/{name}", mode="r")
        return NewSegment(name=name, arrays=cast(dict[str, Rows], dict(group.arrays())), attributes=dict(group.attrs))

    def read_blocks(self) -> list[bytes]:
        """Read the only chunk of each array in `index`; one that is half written or just removed is skipped."""
        store, prototype = self._group().store, default_buffer_prototype()

        async def read() -> list[Any]:
            names = await _members(store, "index/")
            return await asyncio.gather(*(store.get(f"index/{name}/c/0", prototype) for name in sorted(names)))

        return [chunk.to_bytes() for chunk in sync(read()) if chunk is not None]

    def write_block(self, name: str, block: bytes) -> None:
        """Write one uncompressed chunk of bytes, which plain zarr can read as well."""
        _write_array(f"{self.path}/index/{name}", np.frombuffer(block, np.uint8), 0)

    def read_into(self, segment: SegmentIndex, array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        """Read local files directly; at a URL, request neighbouring rows together."""
        key = (segment.name, array)
        if key not in self._opened:
            layout = None if self._local is None else row_layout(self._local / "segments" / segment.name / array)
            self._opened[key] = layout or self._array(*key)
        stored = self._opened[key]
        if isinstance(stored, RowLayout):
            read_rows(stored, starts, outs)
            return
        breaks = (i for i in range(1, len(outs)) if starts[i] != starts[i - 1] + len(outs[i - 1]))
        for first, last in itertools.pairwise(sorted({0, *breaks, len(outs)})):
            rows = np.asarray(stored[starts[first] : starts[last - 1] + len(outs[last - 1])])
            for out in outs[first:last]:
                out[:], rows = rows[: len(out)], rows[len(out) :]

    def write_segment(self, segment: NewSegment, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the arrays, flush them to the disk, then put the group metadata."""
        path, local = f"{self.path}/segments/{segment.name}", self._local and self._local / "segments" / segment.name
        try:
            for key, values in segment.arrays.items():
                _write_array(f"{path}/{key}", values, shard_bytes)
            if local is not None:
                for place in (local, *local.rglob("*")):  # so that a commit after it survives a power cut
                    flush(place)
        except BaseException:
            if local is not None:
                shutil.rmtree(local, ignore_errors=True)  # a full disk needs the room
            raise
        zarr.create_group(path, attributes=dict(segment.attributes), zarr_format=3)
        if local is not None:
            for place in (local / "zarr.json", local, local.parent):
                flush(place)

    def rewrite(self, replacements: Sequence[tuple[Collection[str], NewSegment | None]]) -> None:
        """Commit what is new, then remove what it replaces, and what crashes left."""
        for old, new in replacements:
            if new is not None:
                named = replace(new, attributes={**new.attributes, "replaces": sorted(old)})
                self.write_segment(named, REWRITTEN_SHARD_BYTES)
        gone = [name for old, _ in replacements for name in old]
        store = zarr.open_group(self.path, mode="a", zarr_format=3).store
        (metadata,) = GroupMetadata().to_buffer_dict(default_buffer_prototype()).values()
        for group in GROUPS:
            sync(store.set(f"{group}/zarr.json", metadata))
        if self._local is not None:  # at a URL another writer may be at work on what is unfinished
            for partial in [file for group in GROUPS for file in (self._local / group).glob(PARTIAL)]:
                partial.unlink()
            gone += [folder.name for folder in self._unfinished()]
        # The index before the segments: a block without its segments would call them lost.
        for node in [*(f"index/{name}" for name in sync(_members(store, "index/"))), *(f"segments/{n}" for n in gone)]:
            sync(store.delete(f"{node}/zarr.json"))  # first: a segment that is half removed is none
            with contextlib.suppress(OSError, ValueError):
                sync(store.delete_dir(node))
        self._opened.clear()

    def problems(self, segment: SegmentIndex | None = None) -> list[str]:
        """Find damaged group metadata and, in a local segment, damaged bytes around its rows."""
        if segment is not None:
            if self._local is None:
                return []
            places = (self._local / "segments" / segment.name / name for name in (*NUMBERS, SOURCES))
            folders = [place for place in places if place.exists()]
            for folder in folders:
                zarr.open_array(folder, mode="r", zarr_format=3)  # raises where plain zarr could not read it
            return [problem for layout in filter(None, map(row_layout, folders)) for problem in shard_problems(layout)]
        problems = []
        for group in GROUPS:
            try:
                zarr.open_group(self.path, path=group, mode="r", zarr_format=3)
            except zarr.errors.GroupNotFoundError:
                if group == "segments":  # an index is a convenience
                    problems.append(f"{self.path}/{group}/zarr.json is missing")
            except Exception as error:  # zarr may raise anything over damaged bytes
                problems.append(f"{self.path}/{group}/zarr.json: {error!r}")
        return problems

    def stored(self) -> tuple[int, int]:
        """Count all files in the folder except locks, or all objects below the prefix."""
        if self._local is not None:
            return measured(self._local)
        store = self._group().store

        async def measure() -> list[int]:
            return [await store.getsize(key) async for key in store.list()]

        sizes = sync(measure())
        return len(sizes), sum(sizes)

    def leftovers(self) -> tuple[int, int]:
        sizes = [measured(folder)[1] for folder in self._unfinished()]
        return len(sizes), sum(sizes)

    def strays(self) -> list[Path]:
        """Return the files and folders in a local cache that no writer of it makes."""
        if self._local is None or not self._local.is_dir():
            return []
        inside = [path for group in GROUPS for path in (self._local / group).glob("*")]
        return [
            path
            for path in (*self._local.iterdir(), *inside)
            if path.name not in (*GROUPS, "extras", "zarr.json")
            and not (is_segment_name(path.name) or path.match(PARTIAL) or path.suffix == ".lock")
        ]

    def close(self) -> None:
        self._opened.clear()
        self._lock = None  # releases it

    def _group(self) -> zarr.Group:
        return zarr.open_group(self.path, mode="r", zarr_format=3)

    def _array(self, segment: str, name: str) -> "zarr.Array[Any]":
        return zarr.open_array(self.path, path=f"segments/{segment}/{name}", mode="r")

    def _unfinished(self) -> list[Path]:
        """Return the folders of segments without group metadata; at a URL there is no search for them."""
        folders: Iterable[Path] = () if self._local is None else (self._local / "segments").iterdir()
        return [
            folder
            for folder in folders
            if is_segment_name(folder.name) and folder.is_dir() and not (folder / "zarr.json").exists()
        ]


async def _members(store: Any, folder: str) -> list[str]:
    """List the segments or blocks in a folder as it is now: fsspec caches listings, and other processes write."""
    if hasattr(store, "fs"):
        store.fs.invalidate_cache()
    return [name async for name in store.list_dir(folder) if is_segment_name(name)]


def _left_by_create(folder: Path) -> bool:
    """Return whether a folder holds only what an interrupted `create` leaves: it writes the root's metadata last."""
    names = (path.relative_to(folder).parts for path in folder.rglob("*") if path.suffix not in (".partial", ".lock"))
    return all(top == "extras" or (top in GROUPS and inner in ([], ["zarr.json"])) for top, *inner in names)


def _write_array(path: str, values: Rows, shard_bytes: int = SHARD_BYTES) -> None:
    """Write an array in shards of chunks of about CHUNK_BYTES, one after the other; with `shard_bytes` 0 as one chunk.

    The path is opened as a store of its own: created inside the group, zarr would write the metadata of the parent
    groups too, and the parent's metadata is the commit.
    """
    step, chunks, shards = values.shape[0], values.shape, None
    if values.dtype == object:
        values = np.asarray(values, np.dtypes.StringDType())
    elif shard_bytes:
        row_bytes = max(1, values.dtype.itemsize * int(np.prod(values.shape[1:])))
        rows = min(values.shape[0], max(1, CHUNK_BYTES // row_bytes))
        step = min(-(-values.shape[0] // rows), max(1, shard_bytes // (rows * row_bytes))) * rows
        chunks, shards = (rows, *values.shape[1:]), (step, *values.shape[1:])
    array = zarr.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        shards=shards,
        compressors=None,
        zarr_format=3,
        overwrite=True,  # of what a crash left
        config={"write_empty_chunks": True},
    )
    for start in range(0, values.shape[0], step):
        array[start : start + step] = values[start : start + step]


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
