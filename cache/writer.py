"""Fill a cache: clips are collected in memory and committed as whole segments."""

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from cache import fingerprint as fp
from cache.containers.by_suffix import open_container
from cache.containers.container import NewSegment, Rows, segment_name
from cache.errors import CacheError, CacheLockedError, CacheWriteError
from cache.format import INDEX_ARRAYS, Array, Clip, Header, crc32c, index_crc32c, segment_arrays
from cache.index import write_block
from cache.paths import StrPath
from cache.reader import FeatureCache
from cache.sources import REFRESHED, SOURCES, SOURCES_CRC32C, Medium, to_rows

SEGMENT_BYTES = 16 << 20
"""A segment is committed before it exceeds this: large enough that few are opened, small enough to hold in memory."""
SEGMENT_SECONDS = 60.0
"""A slow extraction commits at least this often, which bounds what a crash can cost."""
SEGMENTS_PER_BLOCK = 64
"""Segments whose index is packed into one block (`cache.index`) while writing goes on; the rest when it ends."""


class CacheWriter(contextlib.AbstractContextManager["CacheWriter"]):
    """Appends clips to a cache, which it creates where there is none.

    Use it as a context manager: leaving it commits what is pending, also after Ctrl-C or an error. An HDF5 file is
    written when it is left without an error (`cache.containers.hdf5_file`).

    Args:
        path: `NAME.zarr` or `NAME.h5`.
        header: fingerprint and layout of what will be written.
        extras: numeric arrays to create the cache with, if this creates it.
        refresh: ids of clips that are written again; the old ones count until the segment with the new is committed.
        segment_bytes: size of `frames` at which a segment is committed.
        segment_seconds: time after which a segment is committed.

    Attributes:
        done: seconds of each clip that is committed or pending, by id, but of those to be written again.

    Raises:
        StaleCacheError: the cache holds features with another fingerprint; names the fields that differ.
        CacheLockedError: an HDF5 cache that another process is writing.
        CacheFormatError: the path holds something else.
    """

    def __init__(
        self,
        path: StrPath,
        header: Header,
        extras: Mapping[str, Array] | None = None,
        *,
        refresh: Collection[str] = (),
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self.header = header
        self._refreshing = bool(refresh)
        self._container = open_container(path)
        self._segment_seconds = segment_seconds
        self._pending: list[tuple[Clip, Medium | None]] = []
        rows = max(1, segment_bytes // (header.dim * header.dtype.itemsize))
        self._frames = np.empty((rows, header.dim), header.dtype)
        self._rows = 0  # of self._frames that are pending
        self._started = time.monotonic()
        try:
            with write_errors(self._container.path):
                if self._container.read_attributes() is None:
                    self._container.create(header.to_attributes(extras), extras or {})
                self._container.lock()
            with FeatureCache(path) as store:
                header.must_match(store.header, store.path)
                again = set(refresh)
                there = zip(store.ids, store.seconds.tolist(), strict=True)
                self.done = {clip_id: seconds for clip_id, seconds in there if clip_id not in again}
                self._unindexed = list(store.unindexed)
        except BaseException:
            self._container.close()  # and with it the lock
            raise

    def add(self, clip: Clip, medium: Medium | None = None) -> None:
        """Take one clip; commits a segment when enough is pending.

        Args:
            clip: its features.
            medium: the file they were made from, where that is known.

        Raises:
            CacheError: the clip is there already.
            CacheFormatError: shapes or values do not fit the cache.
            CacheWriteError: the commit failed.
        """
        if clip.id in self.done:
            raise CacheError(f"clip {clip.id!r} is already in {self._container.path}; a cache holds a clip once")
        clip = self.header.stored(clip)
        if self._rows + len(clip.frames) > len(self._frames):
            self.commit()
        self.done[clip.id] = clip.seconds
        if len(clip.frames) > len(self._frames):  # a segment by itself, without a copy
            self._pending.append((clip, medium))
            self._commit(clip.frames)
            return
        frames = self._frames[self._rows : self._rows + len(clip.frames)]
        frames[:] = clip.frames  # the caller may reuse its own
        self._pending.append((replace(clip, frames=frames), medium))
        self._rows += len(frames)
        if self._rows == len(self._frames) or time.monotonic() - self._started >= self._segment_seconds:
            self.commit()

    def commit(self) -> None:
        """Write what is pending as one segment; returns when it is on the disk."""
        if self._pending:
            self._commit(self._frames[: self._rows])

    def _commit(self, frames: Array) -> None:
        """Write what is pending, whose frames are given one after the other."""
        clips, media = zip(*self._pending, strict=True)
        arrays = segment_arrays(clips, frames)
        if any(media):
            arrays[SOURCES] = to_rows(media)
        self._pending, self._rows = [], 0  # also if the write fails: a retry would fail again
        segment = new_segment(segment_name(), arrays, self.header, refreshed=self._refreshing)
        try:
            with write_errors(self._container.path):
                self._container.write_segment(segment)
        except BaseException:
            for clip in clips:
                del self.done[clip.id]
            raise
        self._unindexed.append(segment.name)
        if len(self._unindexed) >= SEGMENTS_PER_BLOCK:
            write_block(self._container, self._unindexed, self.header)
            self._unindexed.clear()
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.commit()
            write_block(self._container, self._unindexed, self.header)
            if kind is None:
                with write_errors(self._container.path):
                    self._container.seal()
        finally:
            self._container.close()


def seal(path: StrPath) -> None:
    """Finish an HDF5 cache whose writer was stopped when all clips were committed; nothing is done to any other.

    Nor is anything done where another process is writing the cache, which seals it.

    Raises:
        CacheWriteError: there is no room, or no right to write; nothing is lost.
    """
    container = open_container(path)
    with contextlib.closing(container), write_errors(container.path), contextlib.suppress(CacheLockedError):
        container.seal()


def new_segment(name: str, arrays: Mapping[str, Rows], header: Header, *, refreshed: bool = False) -> NewSegment:
    """Return a segment with the attributes that say what it holds; all but frames and VAD are NumPy arrays."""
    ids, *index = (np.asarray(arrays[key]) for key in INDEX_ARRAYS)
    attributes = {
        "clips": len(ids),
        "frames": arrays["frames"].shape[0],
        "fingerprint_sha256": fp.digest(header.fingerprint),
        "index_crc32c": index_crc32c(ids.tolist(), *index),
    }
    if SOURCES in arrays:
        attributes[SOURCES_CRC32C] = crc32c(np.asarray(arrays[SOURCES]))
    if refreshed:
        attributes[REFRESHED] = True
    return NewSegment(name=name, arrays=arrays, attributes=attributes)


@contextlib.contextmanager
def write_errors(path: str) -> Iterator[None]:
    """Turn the operating system's errors into one that says that the cache is intact."""
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        if "://" not in path and not isinstance(error, OSError):  # object stores' clients have classes of their own
            raise
        raise CacheWriteError(
            f"{path} could not be written: {error}. Everything committed before is intact; make room or "
            "mend the permission, then run the same command again"
        ) from error
