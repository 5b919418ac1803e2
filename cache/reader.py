"""Read a cache: the same object over either container, checked on every read."""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.containers.by_suffix import open_container
from cache.containers.container import Container
from cache.containers.file_rows import page_aligned
from cache.errors import CacheNotFoundError, DamagedCacheError, EmiError, UnknownClipError
from cache.format import NUMBERS, OPTIONAL, Array, Clip, Header, extras_crc32c
from cache.gather import Loaded, Run, mismatches, plan_runs, read_runs, read_stored
from cache.index import load_index
from cache.paths import StrPath, at_home
from cache.sources import Medium, from_row, read_sources


class FeatureCache(AbstractContextManager["FeatureCache"]):
    """A read-only mapping from clip id to `Clip`, in the order of writing.

    Only the index is held in memory; frames are read on access. Safe to pickle and to use after a fork: each process
    opens its own handles.

    Args:
        path: `NAME.zarr` (a folder or a URL) or `NAME.h5`.

    Attributes:
        header: what the cache says about all its clips.
        fingerprint: everything that changes a stored number.
        dim: features per frame.
        vad_names: names of the regression outputs in stored order; empty where the backbone has none.
        hop_seconds: time from one frame to the next; None where clips have `times`.
        ids: clips in the order of writing.
        num_frames: (clips,) int64 frames of each clip.
        seconds: (clips,) float64 lengths of the media before the cut.
        segments: names of the committed segments.
        unindexed: segments whose index had to be read one by one; `cache.writer` packs many into a block.
        extras_crc32c: checksum of the arrays that the cache was created with beside its clips; None without any.
        lost: segments that are known to have been there and are gone; reading their clips raises.

    Raises:
        CacheNotFoundError: nothing is there.
        CacheFormatError: not a feature cache, or a later version.
        DamagedCacheError: a segment's index does not match its checksum.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(at_home(path))
        self._container: Container | None = None
        self._pid = os.getpid()
        attributes = self._open().read_attributes()
        if attributes is None:
            raise CacheNotFoundError(
                f"there is no feature cache at {self.path}; make one with `emi extract MEDIA --cache {self.path}`"
            )
        self.header = Header.from_attributes(attributes, self.path)
        self.fingerprint = dict(self.header.fingerprint)
        self.dim, self.vad_names = self.header.dim, self.header.vad_names
        self.hop_seconds = self.header.hop_seconds
        self.extras_crc32c = attributes.get("extras_crc32c")
        self._load_index()

    @functools.cached_property
    def extras(self) -> dict[str, Array]:
        """The arrays that the cache was created with beside its clips.

        Raises:
            DamagedCacheError: they do not match their checksum.
        """
        if self.extras_crc32c is None:
            return {}
        try:
            extras = self._open().read_extras()
            if extras_crc32c(extras) != self.extras_crc32c:
                raise ValueError("they do not match their checksum")
        except Exception as error:  # a container may raise anything over damaged bytes
            raise DamagedCacheError(f"{self.path}: its extras cannot be read: {error!r}; restore a copy") from error
        return extras

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, clip_id: str) -> Clip:
        row = self._row_of(clip_id)
        segment, number = self._segments[self._segment_of[row]], int(self._within[row])
        run = Run(segment, [number], [int(segment.offsets[number])], [int(self.num_frames[row])])
        try:
            stored = read_stored(self._open(), self.header, run)
        except EmiError:
            raise
        except Exception as error:  # a container may raise anything over damaged bytes
            raise self._damage(clip_id, segment.name, repr(error)) from error
        if wrong := mismatches(run, stored):
            raise self._damage(clip_id, segment.name, wrong[number])
        frames, vad, pooled, times, valid = (stored[name][0] if name in stored else None for name in NUMBERS)
        assert frames is not None
        return Clip(clip_id, frames, vad, None if pooled is None else pooled[0], float(self.seconds[row]), times, valid)

    def checksum(self, clip_id: str) -> int:
        """CRC-32C of a clip's stored bytes, as the index states it.

        Raises:
            UnknownClipError: the clip is not in the cache.
        """
        row = self._row_of(clip_id)
        return int(self._segments[self._segment_of[row]].checksums[self._within[row]])

    def medium(self, clip_id: str) -> Medium | None:
        """Describe the media file that a clip was made from; None where that is not known.

        Raises:
            UnknownClipError: the clip is not in the cache.
            DamagedCacheError: what the cache says of it does not match its checksum.
        """
        row = self._row_of(clip_id)
        segment = self._segments[self._segment_of[row]]
        if segment.name not in self._sources:
            try:
                self._sources[segment.name] = read_sources(self._open(), segment)
            except Exception as error:  # a container may raise anything over damaged bytes
                raise self._damage(None, segment.name, str(error)) from error
        return from_row(self._sources[segment.name][self._within[row]])

    def offsets(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """(len(ids) + 1,) rows that clips take in the array that `load` makes of them.

        Raises:
            UnknownClipError: an id is not in the cache.
        """
        return self._offsets_of(self._rows_of(ids))

    def load(self, ids: Sequence[str], out: Array | None = None) -> tuple[Array, NDArray[np.int64]]:
        """Gather clips into one array: the rows and offsets of `load_all`, with the same arguments and errors."""
        loaded = self.load_all(ids, out)
        return loaded.rows, loaded.offsets

    def load_all(self, ids: Sequence[str], out: Array | None = None) -> Loaded:
        """Gather clips into one array, each frame followed by its VAD, with its times and whether it is valid.

        Several threads read; clips that are neighbours in the cache are read together.

        Args:
            ids: clips, in the order in which they are wanted.
            out: (total frames, dim [+ 3]) array to fill, of a float dtype that holds the storage dtype, and with each
                element in memory of its own; it may be a memory map that other processes share. Made where not given.

        Returns:
            The clips in the order of `ids`; rows in the storage dtype, to which VAD is rounded.

        Raises:
            UnknownClipError: an id is not in the cache.
            DamagedCacheError: stored bytes do not match their checksum.
            ValueError: `out` has another shape, is read-only, is no float array or a narrower one than the cache, or
                overlaps itself in memory.
        """
        rows = self._rows_of(ids)
        offsets = self._offsets_of(rows)
        shape = (int(offsets[-1]), self.header.width)
        if out is None:
            out = page_aligned(shape, self.header.dtype)
        elif out.shape != shape:
            raise ValueError(f"out has shape {out.shape}, and these {len(ids)} clips take {shape}")
        else:
            _must_hold(out, self.header.dtype)
        layout = self.header.layout
        optional = {n: np.empty((shape[0], *layout[n].shape), layout[n].dtype) for n in OPTIONAL if n in layout}
        loaded = Loaded(out, offsets, **optional)
        runs = plan_runs(self._segments, self._segment_of[rows], self._within[rows], offsets[:-1], self.header)
        for run, wrong in read_runs(self._open(), self.header, runs, loaded):
            for number, reason in wrong.items():
                raise self._damage(run.segment.ids[number], run.segment.name, reason)
        return loaded

    def close(self) -> None:
        """Close the file handles; the next access opens them again."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_container": None}

    def _open(self) -> Container:
        if self._container is None or self._pid != os.getpid():
            self._container, self._pid = open_container(self.path), os.getpid()
        return self._container

    def _load_index(self) -> None:
        try:
            loaded = load_index(self._open(), self.header)
        except Exception as error:  # a container may raise anything over damaged bytes
            raise DamagedCacheError(
                f"{self.path}: the list of segments cannot be read: {error!r}; restore the cache from a copy"
            ) from error
        for name, reason in loaded.broken.items():
            raise self._damage(None, name, reason)
        self._segments, self.unindexed, self.lost = loaded.segments, loaded.uncovered, loaded.lost
        self.segments: Sequence[str] = [segment.name for segment in self._segments]
        self.ids: list[str] = [clip_id for segment in self._segments for clip_id in segment.ids]
        counts = [len(segment.ids) for segment in self._segments]
        self._segment_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._within = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)])
        self.num_frames = np.concatenate([np.zeros(0, np.int64), *(np.diff(s.offsets) for s in self._segments)])
        self.seconds = np.concatenate([np.zeros(0), *(s.seconds for s in self._segments)])
        self._sources: dict[str, NDArray[np.int64]] = {}
        self._row = dict(zip(self.ids, range(len(self.ids)), strict=True))
        if len(self._row) < len(self.ids):  # two writers made the same clip: the first in order counts
            first = dict(zip(reversed(self.ids), reversed(range(len(self.ids))), strict=True))
            rows = sorted(first.values())
            self.ids = [self.ids[row] for row in rows]
            self._row = dict(zip(self.ids, range(len(rows)), strict=True))
            for name in ("_segment_of", "_within", "num_frames", "seconds"):
                setattr(self, name, getattr(self, name)[rows])

    def _rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        return np.fromiter((self._row_of(clip_id) for clip_id in ids), np.int64, len(ids))

    def _offsets_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.num_frames[rows])]).astype(np.int64)

    def _row_of(self, clip_id: str) -> int:
        try:
            return self._row[clip_id]
        except KeyError:
            import difflib

            nearest = difflib.get_close_matches(str(clip_id), self.ids[:20000], n=1)
            hint = f"; the nearest id is {nearest[0]!r}" if nearest else ""
            raise UnknownClipError(f"{self.path} holds no clip {clip_id!r} (it holds {len(self)}){hint}") from None

    def _damage(self, clip_id: str | None, segment: str, reason: str) -> DamagedCacheError:
        if clip_id is not None and segment not in self.lost and not self._is_there(segment):
            return DamagedCacheError(
                f"{self.path}: the segment that held clip {clip_id!r} is gone: the cache was compacted or repaired "
                "since it was opened; open it again"
            )
        what = f"clip {clip_id!r}" if clip_id is not None else "the index"
        return DamagedCacheError(
            f"{self.path}: {what} of segment {segment} is damaged: {reason}. `emi cache verify {self.path}` names "
            f"every damaged clip, `emi cache repair {self.path}` drops them, and `emi extract` fills them again"
        )

    def _is_there(self, segment: str) -> bool:
        """Return whether a segment is still in the cache."""
        try:
            return segment in open_container(self.path).segment_names()
        except Exception:  # damage of another kind
            return True


def _must_hold(out: Array, dtype: np.dtype[Any]) -> None:
    """Refuse an array that would not keep every number that is written into it.

    Raises:
        ValueError: see `FeatureCache.load`.
    """
    if not out.flags.writeable:
        raise ValueError("out may not be written")
    if out.dtype.kind != "f" or not np.can_cast(dtype, out.dtype, "safe"):
        raise ValueError(f"out has dtype {out.dtype}, and the cache {dtype}; give a float array at least as wide")
    free = out.itemsize  # bytes from one step of an axis to the next that the axes within it take
    axes = zip(out.strides, out.shape, strict=True)
    for stride, length in sorted((abs(stride), length) for stride, length in axes if length > 1 and out.size):
        if stride < free:
            raise ValueError(f"out overlaps itself in memory (strides {out.strides}); give an array of its own memory")
        free = stride * (length - 1) + free


def open_cache(path: StrPath) -> FeatureCache:
    """Open a feature cache for reading; see `FeatureCache`."""
    return FeatureCache(path)
