"""Read a cache: the same object over either container, checked on every read."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import fingerprint as fp
from cache.container import Container, StrPath, open_container
from cache.errors import CacheNotFoundError, DamagedCacheError, EmiError, UnknownClipError
from cache.format import Array, Clip, Header, index_crc32c


class FeatureCache:
    """A read-only mapping from clip id to `Clip`, in the order of writing.

    Only the index is held in memory; frames are read on access. Safe to pickle and to use after a fork: each process
    opens its own handles.

    Args:
        path: `NAME.zarr` or `NAME.h5`.

    Raises:
        CacheNotFoundError: nothing is there.
        CacheFormatError: not a feature cache, or a later version.
        DamagedCacheError: a segment's index does not match its checksum.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self._container: Container | None = None
        self._pid = os.getpid()
        attributes = self._open().read_attributes()
        if attributes is None:
            raise CacheNotFoundError(
                f"there is no feature cache at {self.path}; make one with `emi extract MEDIA --cache {self.path}`"
            )
        self.header = Header.from_attributes(attributes, self.path)
        self._load_index()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a stored number."""
        return dict(self.header.fingerprint)

    @property
    def dim(self) -> int:
        """Features per frame."""
        return self.header.dim

    @property
    def vad_names(self) -> tuple[str, ...]:
        """Names of the regression outputs in stored order; empty where the backbone has none."""
        return self.header.vad_names

    @property
    def hop_seconds(self) -> float:
        """Time from one frame to the next."""
        return self.header.hop_seconds

    @property
    def segments(self) -> Sequence[str]:
        """Names of the committed segments."""
        return self._segments

    @property
    def num_frames(self) -> NDArray[np.int64]:
        """(clips,) frames of each clip, in the order of `ids`."""
        return np.asarray(self._stop - self._start, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, clip_id: str) -> Clip:
        row = self._row.get(clip_id)
        if row is None:
            raise UnknownClipError(
                f"{self.path} holds no clip {clip_id!r} (it holds {len(self)}){self._nearest(clip_id)}"
            )
        segment = self._segments[self._segment_of[row]]
        start, stop, within = int(self._start[row]), int(self._stop[row]), int(self._within[row])
        try:
            clip = self._read(clip_id, segment, start, stop, within, float(self.seconds[row]))
        except EmiError:
            raise
        except Exception as error:  # a container may raise anything over damaged bytes
            raise self._damage(clip_id, segment, repr(error)) from error
        if clip.checksum() != self._checksums[row]:
            raise self._damage(clip_id, segment, "the bytes do not match their checksum")
        return clip

    def load(self, ids: Sequence[str]) -> tuple[Array, NDArray[np.int64]]:
        """Gather clips into one array, each frame followed by its VAD where the cache has it.

        Returns:
            (total frames, dim [+ 3]) in the storage dtype (VAD is rounded to it), and (len(ids) + 1,) int64 offsets:
            clip i is rows offsets[i]:offsets[i + 1].

        Raises:
            UnknownClipError: an id is not in the cache.
            DamagedCacheError: stored bytes do not match their checksum.
        """
        lengths = [self._length(clip_id) for clip_id in ids]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        out = np.empty((offsets[-1], self.dim + len(self.vad_names)), self.header.dtype)
        for i, clip_id in enumerate(ids):
            out[offsets[i] : offsets[i + 1]] = self[clip_id].joined()
        return out, offsets

    def close(self) -> None:
        """Close the file handles; the next access opens them again."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_container": None}

    def _open(self) -> Container:
        if self._container is None or self._pid != os.getpid():
            self._container, self._pid = open_container(self.path), os.getpid()
        return self._container

    def _load_index(self) -> None:
        container = self._open()
        try:
            self._segments = container.segment_names()
        except Exception as error:  # a container may raise anything over damaged bytes
            raise DamagedCacheError(
                f"{self.path}: the list of segments cannot be read: {error!r}; restore the cache from a copy"
            ) from error
        self.ids: list[str] = []
        self._row: dict[str, int] = {}
        columns: list[tuple[Array, ...]] = []
        for number, name in enumerate(self._segments):
            arrays = self._segment_index(container, name)
            ids, offsets = arrays["ids"].tolist(), arrays["offsets"]
            # Two writers may have made the same clip; the first in order is the one that counts.
            new = [i for i, clip_id in enumerate(ids) if clip_id not in self._row]
            self._row.update((ids[i], len(self.ids) + k) for k, i in enumerate(new))
            self.ids.extend(ids[i] for i in new)
            columns.append(
                (
                    np.full(len(new), number, np.int32),
                    np.asarray(new, np.int64),
                    offsets[:-1][new],
                    offsets[1:][new],
                    arrays["seconds"][new],
                    arrays["checksums"][new],
                )
            )
        empty = tuple(np.zeros(0, t) for t in (np.int32, np.int64, np.int64, np.int64, np.float64, np.uint32))
        stacked = [np.concatenate(c) for c in zip(empty, *columns, strict=True)]
        self._segment_of, self._within, self._start, self._stop, self.seconds, self._checksums = stacked

    def _segment_index(self, container: Container, name: str) -> dict[str, Array]:
        try:
            attributes, arrays = container.read_segment(name)
            crc = index_crc32c(arrays["ids"].tolist(), arrays["offsets"], arrays["seconds"], arrays["checksums"])
            intact = crc == attributes["index_crc32c"]
        except Exception as error:  # a container may raise anything over damaged bytes
            raise self._damage(None, name, repr(error)) from error
        if not intact:
            raise self._damage(None, name, "the index does not match its checksum")
        if attributes.get("fingerprint_sha256") != fp.digest(self.header.fingerprint):
            raise self._damage(None, name, "it was made with another fingerprint than the cache's header states")
        return arrays

    def _read(self, clip_id: str, segment: str, start: int, stop: int, within: int, seconds: float) -> Clip:
        container = self._open()
        frames = container.read_rows(segment, "frames", start, stop)
        if not self.vad_names:
            return Clip(clip_id, frames, None, None, seconds)
        vad = container.read_rows(segment, "vad", start, stop)
        pooled = container.read_rows(segment, "vad_pooled", within, within + 1)[0]
        return Clip(clip_id, frames, vad, pooled, seconds)

    def _length(self, clip_id: str) -> int:
        if clip_id not in self._row:
            return len(self[clip_id].frames)  # raises UnknownClipError
        row = self._row[clip_id]
        return int(self._stop[row] - self._start[row])

    def _nearest(self, clip_id: object) -> str:
        import difflib

        near = difflib.get_close_matches(str(clip_id), self.ids[:20000], n=1)
        return f"; the nearest id is {near[0]!r}" if near else ""

    def _damage(self, clip_id: str | None, segment: str, reason: str) -> DamagedCacheError:
        what = f"clip {clip_id!r}" if clip_id is not None else "the index"
        return DamagedCacheError(
            f"{self.path}: {what} of segment {segment} is damaged: {reason}. `emi cache info` names the cache's "
            "settings; restore the segment from a copy, or extract into a new cache"
        )


def open_cache(path: StrPath) -> FeatureCache:
    """Open a feature cache for reading; see `FeatureCache`."""
    return FeatureCache(path)
