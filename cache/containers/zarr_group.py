"""A feature cache as a Zarr v3 group: a folder, or any URL that zarr opens through fsspec.

A segment's arrays are written first and its group metadata (`segments/<name>/zarr.json`) last: that one put is the
commit, atomic on a local disk (zarr renames a temporary file) as on an object store. Without it, neither this reader
nor plain zarr sees the segment, so what a crash leaves behind is invisible. Each array is a few shards, one file each.

A segment that takes the place of others names them in its attribute `replaces`: its commit is theirs to vanish, and
their files are removed afterwards.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
import zarr.errors
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import GroupMetadata
from zarr.core.sync import sync

from cache.containers.container import NewSegment, Rows, check_protocol
from cache.containers.zarr_rows import RowLayout, read_rows, row_layout, shard_problems
from cache.errors import CacheError, CacheFormatError, CacheLockedError
from cache.format import ARRAYS, INDEX_ARRAYS, Array
from cache.index import SegmentIndex
from cache.sources import SOURCES
from cache.system import disk
from cache.system.disk import sync as sync_file

if TYPE_CHECKING:
    from cache.system.locks import FolderLock

GROUPS = ("segments", "index")
CHUNK_BYTES = 1 << 20
"""Size of an inner chunk of a shard: what one random clip read fetches at least."""
SHARD_BYTES = 4 << 20
"""Size of a shard, which is one file or object; zarr holds it three times while it writes it."""
REWRITTEN_SHARD_BYTES = 64 << 20
"""The same where segments are joined: a sixteenth of the files."""


class ZarrContainer:
    """See `cache.containers.container.Container`. Any number of processes may write at once, each its own segments."""

    one_writer = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.remote = "://" in path
        if self.remote:
            check_protocol(path)
        self._local = None if self.remote else Path(path)
        self._layouts: dict[tuple[str, str], RowLayout | None] = {}
        self._arrays: dict[tuple[str, str], zarr.Array[Any]] = {}
        self._lock: FolderLock | None = None

    def read_attributes(self) -> dict[str, Any] | None:
        """Root attributes, or None where there is no Zarr group."""
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
        for group in (*GROUPS, *(["extras"] if extras else [])):
            with contextlib.suppress(zarr.errors.ContainsGroupError):
                zarr.create_group(f"{self.path}/{group}", zarr_format=3)
        if extras:  # those of a creation that was cut off before it put the root
            before = zarr.open_group(f"{self.path}/extras", mode="r+", zarr_format=3)
            for name in list(before.array_keys()):
                del before[name]
        for name, values in extras.items():
            _write_array(f"{self.path}/extras/{name}", values)
        with contextlib.suppress(zarr.errors.ContainsGroupError):
            zarr.create_group(self.path, attributes=dict(attributes), zarr_format=3)
        if self._local is not None:
            for place in (*self._local.rglob("zarr.json"), self._local, self._local.parent):
                sync_file(place)

    def read_extras(self) -> dict[str, Array]:
        """The arrays of the group `extras`, which most caches lack."""
        root = self._group()
        return {name: np.asarray(a[:]) for name, a in root["extras"].arrays()} if "extras" in root else {}  # type: ignore[union-attr]

    def lock(self, *, alone: bool = False) -> None:
        """Share the folder with other writers, or have it alone; a URL cannot be locked, nor can some file systems."""
        from cache.system.locks import FolderLock, HeldError  # takes 50 ms, and readers lock nothing

        if self._local is None or (self._lock is not None and not alone):
            return
        self._release()
        self._lock = FolderLock(self._local)
        try:
            self._lock.take(alone=alone)
        except HeldError as error:
            raise CacheLockedError(
                f"{self.path} is being {'written' if alone else 'compacted or repaired'} by another process{error}; "
                "wait for it, then run this again"
            ) from None

    def segment_names(self, known: Collection[str] = ()) -> list[str]:
        """Committed segments: the members of `segments` that have group metadata."""
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
        """Attributes and index arrays of one segment."""
        attributes = dict(zarr.open_group(self.path, path=f"segments/{name}", mode="r").attrs)
        return attributes, {array: np.asarray(self._array(name, array)[:]) for array in INDEX_ARRAYS}, {}

    def whole_segment(self, name: str) -> NewSegment:
        """Return a segment with all its arrays, to be written elsewhere."""
        group = zarr.open_group(self.path, path=f"segments/{name}", mode="r")
        return NewSegment(name=name, arrays=cast(dict[str, Rows], dict(group.arrays())), attributes=dict(group.attrs))

    def read_blocks(self) -> list[bytes]:
        """The only chunk of each array in `index`; one that is half written or just removed is passed over."""
        store, prototype = self._group().store, default_buffer_prototype()

        async def read() -> list[Any]:
            names = await _members(store, "index/")
            return await asyncio.gather(*(store.get(f"index/{name}/c/0", prototype) for name in sorted(names)))

        return [chunk.to_bytes() for chunk in sync(read()) if chunk is not None]

    def write_block(self, name: str, block: bytes) -> None:
        """One uncompressed chunk of bytes, which plain zarr can read as well."""
        content = np.frombuffer(block, np.uint8)
        array = zarr.create_array(
            f"{self.path}/index/{name}",
            shape=content.shape,
            dtype=np.uint8,
            chunks=content.shape,
            compressors=None,
            zarr_format=3,
            config={"write_empty_chunks": True},
        )
        array[:] = content

    def read_into(self, segment: SegmentIndex, array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        """Straight from the files where they are local; else what lies together is asked for together."""
        key = (segment.name, array)
        if self._local is not None:
            if key not in self._layouts:
                self._layouts[key] = row_layout(self._local / "segments" / segment.name / array)
            layout = self._layouts[key]
            if layout is not None:
                read_rows(layout, starts, outs)
                return
        stored = self._array(*key)
        for first, last in _neighbours(starts, outs):
            rows = np.asarray(stored[starts[first] : starts[last] + len(outs[last])])
            for out in outs[first : last + 1]:
                out[:], rows = rows[: len(out)], rows[len(out) :]

    def write_segment(self, segment: NewSegment, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the arrays, flush them to the disk, then put the group metadata."""
        prefix = f"segments/{segment.name}"
        try:
            for key, values in segment.arrays.items():
                _write_array(f"{self.path}/{prefix}/{key}", values, shard_bytes)
            if self._local is not None:
                _fsync_tree(self._local / prefix)
        except BaseException:
            if self._local is not None:
                shutil.rmtree(self._local / prefix, ignore_errors=True)  # a full disk needs the room
            raise
        zarr.create_group(f"{self.path}/{prefix}", attributes=dict(segment.attributes), zarr_format=3)
        if self._local is not None:
            _fsync_tree(self._local / prefix, files=("zarr.json",))
            disk.sync(self._local / "segments")

    def rewrite(self, replacements: Sequence[tuple[Collection[str], NewSegment | None]]) -> None:
        """Commit what is new, then remove what it replaces, and what crashes left."""
        for old, new in replacements:
            if new is not None:
                attributes = {**new.attributes, "replaces": sorted(old)}
                named = NewSegment(name=new.name, arrays=new.arrays, attributes=attributes)
                self.write_segment(named, REWRITTEN_SHARD_BYTES)
        self._put_groups()
        if self._local is not None:
            for partial in [file for group in GROUPS for file in (self._local / group).glob("*.partial")]:
                partial.unlink()
        self._remove_all("index")  # before the segments: a block without its segments would call them lost
        for old, _ in replacements:
            for name in old:
                self._remove_segment(name)
        if self._local is not None:  # at a URL another writer may be at work on it
            for name in self._unfinished():
                self._remove_segment(name)
        self._layouts.clear()
        self._arrays.clear()

    def seal(self) -> bool:
        """Nothing: each segment is whole when it is committed."""
        return False

    def problems(self, segment: SegmentIndex | None = None) -> list[str]:
        """Group metadata that plain zarr would stumble over; around a local segment's rows, whatever is not a row."""
        if segment is not None:
            if self._local is None:
                return []
            segment_folder = self._local / "segments" / segment.name
            folders = [segment_folder / name for name in (*ARRAYS, SOURCES) if name not in INDEX_ARRAYS]
            folders = [folder for folder in folders if folder.exists()]
            for folder in folders:
                zarr.open_array(folder, mode="r", zarr_format=3)  # raises where plain zarr could not read it
            layouts = [row_layout(folder) for folder in folders]
            return [problem for layout in layouts if layout is not None for problem in shard_problems(layout)]
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
        """All files below the folder but its locks, or objects below the prefix."""
        if self._local is not None:
            files = (file for file in self._local.rglob("*") if file.suffix != ".lock" and file.is_file())
            sizes = [file.stat().st_size for file in files]
            return len(sizes), sum(sizes)
        store = self._group().store

        async def measure() -> list[int]:
            return [await store.getsize(key) async for key in store.list()]

        sizes = sync(measure())
        return len(sizes), sum(sizes)

    def leftovers(self) -> tuple[int, int]:
        """Segments without group metadata; not looked for at a URL."""
        if self._local is None:
            return 0, 0
        unfinished = [self._local / "segments" / name for name in self._unfinished()]
        return len(unfinished), sum(f.stat().st_size for folder in unfinished for f in folder.rglob("*") if f.is_file())

    def close(self) -> None:
        """Forget open arrays, and let go of the lock."""
        self._arrays.clear()
        self._layouts.clear()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def _group(self) -> zarr.Group:
        return zarr.open_group(self.path, mode="r", zarr_format=3)

    def _array(self, segment: str, name: str) -> "zarr.Array[Any]":
        key = (segment, name)
        if key not in self._arrays:
            self._arrays[key] = zarr.open_array(self.path, path=f"segments/{segment}/{name}", mode="r")
        return self._arrays[key]

    def _unfinished(self) -> list[str]:
        assert self._local is not None
        return [p.name for p in (self._local / "segments").iterdir() if p.is_dir() and not (p / "zarr.json").exists()]

    def _put_groups(self) -> None:
        store = zarr.open_group(self.path, mode="a", zarr_format=3).store
        (metadata,) = GroupMetadata().to_buffer_dict(default_buffer_prototype()).values()
        for group in GROUPS:
            sync(store.set(f"{group}/zarr.json", metadata))

    def _remove_segment(self, name: str) -> None:
        """Its metadata first: a segment that is half removed is none."""
        if self._local is not None:
            (self._local / "segments" / name / "zarr.json").unlink(missing_ok=True)
            shutil.rmtree(self._local / "segments" / name, ignore_errors=True)
            return
        store = zarr.open_group(self.path, mode="a", zarr_format=3).store
        sync(store.delete(f"segments/{name}/zarr.json"))
        sync(store.delete_dir(f"segments/{name}"))

    def _remove_all(self, group: str) -> None:
        """The members of a group that is not `segments`."""
        store = zarr.open_group(self.path, mode="a", zarr_format=3).store

        async def remove() -> None:
            for name in [name async for name in store.list_dir(f"{group}/") if name != "zarr.json"]:
                with contextlib.suppress(ValueError):  # a file that someone else put there
                    await store.delete_dir(f"{group}/{name}")

        sync(remove())


async def _members(store: Any, folder: str) -> list[str]:
    """What lies in a folder now: fsspec remembers listings, and other processes write."""
    if hasattr(store, "fs"):
        store.fs.invalidate_cache()
    return [name async for name in store.list_dir(folder) if name != "zarr.json"]


def _left_by_create(folder: Path) -> bool:
    """Whether all that lies here is what an interrupted `create` leaves: it puts the root's metadata last."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix not in (".partial", ".lock"))
    return all(name.parts[0] in ("segments", "index", "extras") and _is_created(name) for name in names)


def _is_created(name: Path) -> bool:
    return name.parts[0] == "extras" or name.parts[1:] in ((), ("zarr.json",))


def _write_array(path: str, values: Rows, shard_bytes: int = SHARD_BYTES) -> None:
    """One array in shards of chunks of about CHUNK_BYTES, one shard after the other; strings as one chunk.

    The path is opened as a store of its own: created inside the group, zarr would write the metadata of the parent
    groups too, and the parent's metadata is the commit.
    """
    if values.dtype == object:
        values = np.asarray(values, np.dtypes.StringDType())
        step, chunks, shards = values.shape[0], values.shape, None
    else:
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


def _fsync_tree(folder: Path, files: tuple[str, ...] | None = None) -> None:
    """Flush a folder's files and directories to the disk, so that a commit after it survives a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if files is None or name in files:
                disk.sync(Path(parent) / name)
        disk.sync(Path(parent))
        if files is not None:
            break


def _neighbours(starts: Sequence[int], outs: Sequence[Array]) -> Iterator[tuple[int, int]]:
    """(first, last) of those that lie one behind the other."""
    first = 0
    for i in range(1, len(outs) + 1):
        if i == len(outs) or starts[i] != starts[i - 1] + len(outs[i - 1]):
            yield first, i - 1
            first = i
