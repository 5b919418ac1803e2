"""A feature cache as one HDF5 file, with atomic commits through `cache.containers.journal`.

Every array is contiguous and uncompressed, so that reading rows is one seek, for us as for plain `h5py`. Attributes
that are mappings or lists are JSON text.

A reader parses the file once, through h5py, into a snapshot: attributes, index arrays, and the place of each large
array in the file. Committed bytes never move, so the snapshot stays true while a writer appends, costs no HDF5 state
per read, needs no right to write, and survives a fork. Where segments are replaced, the whole file is written anew and
renamed into place; a snapshot keeps the old one.
"""

import contextlib
import io
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from cache.containers import journal
from cache.containers.container import NewSegment, Rows
from cache.containers.file_rows import copy_from_file
from cache.errors import CacheFormatError, CacheLockedError
from cache.format import FORMAT, INDEX_ARRAYS, Array
from cache.index import SegmentIndex, names_in
from cache.system.disk import open_binary, read_at, sync

if TYPE_CHECKING:
    from cache.system.locks import Lock

_LIBVER = ("v108", "v108")
"""The file format of HDF5 1.8 (2008), which keeps a checksum over each piece of its metadata. In the one before, h5py's
default, a flipped byte could make segments vanish without a word, or crash the interpreter."""
_SUPERBLOCK_BYTES = 96
"""The head of the file holds the address of its end, which every commit changes."""
_ATTEMPTS = 100
_COPY_BYTES = 16 << 20
"""Of an array, written at a time where segments are joined."""

_Read = TypeVar("_Read")
_Parsed = tuple[dict[str, Any], dict[str, Array], dict[str, Any]]
"""What `read_segment` returns."""


class _Snapshot:
    """The cache as of one commit."""

    def __init__(self, path: Path) -> None:
        """Parse the file; tried again where a commit came in between."""
        self._path = path
        self.descriptor = open_binary(path)
        weakref.finalize(self, os.close, self.descriptor)
        for attempt in range(_ATTEMPTS):
            self._state = _state(path, self.descriptor)
            try:
                self.pending = journal.pending(path, self.descriptor)
                self._parse()
            except Exception:
                if not self.changed():
                    raise
            else:
                if not self.changed():  # what failed because of a commit may have passed for damage
                    return
            time.sleep(0.001 * attempt)
        raise OSError(f"{path} changes faster than it can be read")

    def changed(self) -> bool:
        """Whether a commit came since, wholly or partly applied."""
        return _state(self._path, self.descriptor) != self._state

    def file(self) -> h5py.File:
        """The file as h5py sees it; each read fails where a commit came since.

        HDF5 must not see a byte of it: over a mixture of two commits it may abort the process.
        """
        return h5py.File(journal.Overlay(self.descriptor, self.pending, self._check), "r")

    def _check(self) -> None:
        if self.changed():
            raise OSError("a commit came while it was read")

    def _parse(self) -> None:
        with self.file() as file:
            self.attributes = _attributes(file)
            self.names: list[str] = []
            self.blocks: list[bytes] = []
            if self.attributes.get("format") == FORMAT:
                self.names = _segment_names(file)
                self.blocks = _blocks(file)
            covered = {name for block in self.blocks for name in names_in(block)}
            self.segments: dict[str, _Parsed] = {}
            for name in self.names:
                if name not in covered:
                    with contextlib.suppress(Exception):  # who asks for a damaged one is told
                        self.segments[name] = _parse(file[f"segments/{name}"])


class Hdf5Container:
    """See `cache.containers.container.Container`. One process writes at a time; reading goes on meanwhile.

    Raises:
        CacheFormatError: the path is a URL.
    """

    one_writer = True
    remote = False

    def __init__(self, path: str) -> None:
        if "://" in path:
            raise CacheFormatError(
                f"{path} is a URL, and HDF5 caches are local files; give the path of one, or name the cache NAME.zarr, "
                "which may be at a URL"
            )
        self.path = path
        self._path = Path(os.path.realpath(path))  # the journal and new files belong beside the file, not beside a link
        self._snapshot: _Snapshot | None = None
        self._lock: Lock | None = None
        self._to_write = -1
        """Descriptor of the file while it is locked."""

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

    def create(self, attributes: Mapping[str, Any], extras: Mapping[str, Array]) -> None:
        """Build an empty file in memory and link it into place, so that it appears whole."""
        content = io.BytesIO()
        with h5py.File(content, "w", libver=_LIBVER) as file:
            file.create_group("segments").attrs["count"] = 0
            for name, values in extras.items():
                file.create_dataset(f"extras/{name}", data=values)
            _set_attributes(file, attributes)
        temporary = self._temporary()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.getvalue())
            os.link(temporary, self._path)
        except FileExistsError:
            return  # another process made it meanwhile; the caller compares fingerprints
        finally:
            temporary.unlink(missing_ok=True)

    def read_extras(self) -> dict[str, Array]:
        """The arrays of the group `extras`, which most caches lack."""
        return self._through_h5py(
            lambda file: {name: np.asarray(a[()]) for name, a in file["extras"].items()} if "extras" in file else {}
        )

    def lock(self, *, alone: bool = False) -> None:  # noqa: ARG002 - a writer always is
        """Lock the file itself, as HDF5 does, so that a second writer is refused at once."""
        from cache.system.locks import HeldError, Lock  # takes 50 ms, and readers lock nothing

        if self._lock is not None:
            return
        lock = Lock(self._path)
        try:
            lock.take()
        except HeldError as error:
            raise CacheLockedError(
                f"{self.path} is being written by another process{error}, and HDF5 takes one writer; wait for it, or "
                "use a .zarr cache, which takes any number"
            ) from None
        self._to_write = open_binary(self._path, os.O_RDWR)
        self._close_file = weakref.finalize(self, os.close, self._to_write)
        self._lock = lock
        journal.replay(self._path, self._to_write)

    def segment_names(self, known: Collection[str] = ()) -> list[str]:  # noqa: ARG002 - all are listed in one place
        """Segments sorted by name, which starts with the time of writing."""
        return sorted(self._read().names)

    def read_segment(self, name: str) -> _Parsed:
        """Attributes, index arrays and places of one segment."""
        known = self._read().segments.get(name)
        return known if known is not None else self._through_h5py(lambda file: _parse(file[f"segments/{name}"]))

    def read_blocks(self) -> list[bytes]:
        """The data sets of `index`."""
        return self._read().blocks

    def write_block(self, name: str, block: bytes) -> None:
        """One data set of bytes."""
        with self._overlay() as file:
            file.create_dataset(f"index/{name}", data=np.frombuffer(block, np.uint8))

    def read_into(self, segment: SegmentIndex, array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        """From their place in the file."""
        offset, shape, dtype = segment.places[array]
        columns, row_bytes = tuple(shape[1:]), np.dtype(dtype).itemsize * math.prod(shape[1:])
        places: list[tuple[int, memoryview]] = []
        for start, out in zip(starts, outs, strict=True):
            if out.shape[1:] != columns or out.dtype != dtype or not 0 <= start <= start + len(out) <= shape[0]:
                raise ValueError(f"{len(out)} rows of {out.dtype} {out.shape[1:]} from {start} on are not in {shape}")
            if out.size:
                places.append((offset + start * row_bytes, memoryview(out).cast("B")))  # type: ignore[arg-type]
        snapshot = self._read()
        if snapshot.pending:
            overlay = journal.Overlay(snapshot.descriptor, snapshot.pending)
            for at, view in places:
                view[:] = overlay.read_at(at, len(view))
        else:
            copy_from_file(snapshot.descriptor, places)

    def write_segment(self, segment: NewSegment) -> None:
        """Let HDF5 write into memory, then commit the bytes through the journal."""
        with self._overlay() as file:
            group = file.create_group(f"segments/{segment.name}")
            for key, values in segment.arrays.items():
                group.create_dataset(key, data=_utf8(values) if key == "ids" else values)
            _set_attributes(group, segment.attributes)
            file["segments"].attrs["count"] = len(file["segments"])

    def rewrite(self, replacements: Sequence[tuple[Collection[str], NewSegment | None]]) -> None:
        """Copy the file without what is replaced, and put the copy in its place: HDF5 gives no room back otherwise."""
        self.lock()
        gone = {name for old, _ in replacements for name in old}
        temporary = self._rewritten()
        try:
            with self._read().file() as source, h5py.File(temporary, "w", libver=_LIBVER) as target:
                for key, value in source.attrs.items():
                    target.attrs[key] = value
                if "extras" in source:
                    source.copy("extras", target)
                segments = target.create_group("segments")
                for name in self.segment_names():
                    if name not in gone:
                        _attributes(source[f"segments/{name}"])  # copied below without a check of its strings
                        source.copy(source[f"segments/{name}"], segments, name=name)
                for _, new in replacements:
                    if new is not None:
                        _write_by_blocks(segments.create_group(new.name), new)
                segments.attrs["count"] = len(segments)
            sync(temporary)
            temporary.replace(self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.close()

    def problems(self, segment: SegmentIndex | None = None) -> list[str]:  # noqa: ARG002
        """None: HDF5 keeps checksums over its own metadata, and refuses to read what does not match."""
        return []

    def stored(self) -> tuple[int, int]:
        """One file."""
        return 1, self._path.stat().st_size

    def leftovers(self) -> tuple[int, int]:
        """What a killed `rewrite` left; what other crashes leave in the file, the next commit overwrites."""
        left = self._rewritten()
        return (1, left.stat().st_size) if left.exists() else (0, 0)

    def close(self) -> None:
        """Forget the snapshot and let go of the lock."""
        self._snapshot = None
        if self._lock is not None:
            self._close_file()
            self._lock.release()
        self._lock = None

    def _read(self) -> _Snapshot:
        if self._snapshot is None:
            self._snapshot = _Snapshot(self._path)
        return self._snapshot

    def _through_h5py(self, read: Callable[[h5py.File], _Read]) -> _Read:
        """Read what the snapshot does not hold; from a new one where a commit came since."""
        while True:
            snapshot = self._read()
            try:
                with snapshot.file() as file:
                    return read(file)
            except Exception:
                if not snapshot.changed():
                    raise
                self._snapshot = None

    def _rewritten(self) -> Path:
        return self._path.with_name(f"{self._path.name}.rewritten.tmp")

    def _temporary(self) -> Path:
        return self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")

    @contextlib.contextmanager
    def _overlay(self) -> Iterator[h5py.File]:
        """The file to be changed in memory; committed at the end."""
        self.lock()
        journal.replay(self._path, self._to_write)  # one is left where applying it failed in the commit before this
        overlay = journal.Overlay(self._to_write)
        with h5py.File(overlay, "r+", libver=_LIBVER) as file:
            yield file
        overlay.commit(self._path)
        self._snapshot = None


def _state(path: Path, descriptor: int) -> tuple[object, ...]:
    """What differs before and after a commit, wholly or partly applied."""
    try:
        left = journal.journal_path(path).stat()
        waiting = (left.st_ino, left.st_mtime_ns)
    except FileNotFoundError:
        waiting = None
    file = os.fstat(descriptor)
    return waiting, file.st_size, file.st_mtime_ns, read_at(descriptor, _SUPERBLOCK_BYTES, 0)


def _segment_names(file: h5py.File) -> list[str]:
    """All segments; their number is stored beside them, for a damaged list may look like a shorter one."""
    names = list(file["segments"])
    if len(names) != file["segments"].attrs["count"]:
        raise OSError(f"{len(names)} segments are listed of {file['segments'].attrs['count']}")
    return names


def _blocks(file: h5py.File) -> list[bytes]:
    """The data sets of `index`; nothing in the place of what cannot be read, over which HDF5 may raise anything."""
    try:
        blocks = list(file["index"].values()) if "index" in file else []
    except Exception:
        return [b""]
    contents = []
    for block in blocks:
        try:
            contents.append(bytes(block[()]))
        except Exception:
            contents.append(b"")
    return contents


def _parse(group: Any) -> _Parsed:
    index = {key: np.asarray(group[key][()]) for key in INDEX_ARRAYS if key != "ids"}
    index["ids"] = np.asarray(group["ids"].asstr()[()], dtype=object)
    places = {
        name: [array.id.get_offset(), list(array.shape), array.dtype.str]
        for name, array in group.items()
        if name not in INDEX_ARRAYS
    }
    return _attributes(group), index, places


def _write_by_blocks(group: Any, segment: NewSegment) -> None:
    """Arrays that may not fit in memory."""
    for key, values in segment.arrays.items():
        if key == "ids":
            group.create_dataset(key, data=_utf8(values))
            continue
        array = group.create_dataset(key, shape=values.shape, dtype=values.dtype)
        rows = max(1, _COPY_BYTES // max(1, array.dtype.itemsize * int(np.prod(values.shape[1:]))))
        for start in range(0, len(values), rows):
            array[start : start + rows] = values[start : start + rows]
    _set_attributes(group, segment.attributes)


def _utf8(ids: Rows) -> Array:
    """Fixed-length UTF-8: contiguous bytes that checksums and memory maps can see, unlike HDF5's string heap."""
    encoded = [text.encode() for text in ids[:]]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _attributes(node: Any) -> dict[str, Any]:
    with journal.reading_strings():
        return {key: _decoded(value) for key, value in node.attrs.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        return json.loads(value) if value[:1] in ("{", "[") else value
    return value.item()


def _set_attributes(node: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        node.attrs[key] = json.dumps(value) if isinstance(value, dict | list) else value
