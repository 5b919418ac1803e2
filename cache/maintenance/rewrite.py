"""Put new segments in the place of old ones: `repair` without the damaged clips, `compact` as one of many.

A new segment is copied row by row from the old ones, so that memory stays flat, and keeps the checksums that its clips
were written with: what a copy spoils, the checksums find. The container commits it before the old ones go.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cache import fingerprint as fp
from cache.containers.by_suffix import open_container
from cache.containers.container import Container
from cache.errors import DamagedCacheError
from cache.format import Array, Header
from cache.index import LoadedIndex, load_index, pack, read_segment_index
from cache.maintenance.verify import DamagedClip, Progress, open_damaged, problems_of_extras, verify
from cache.paths import StrPath
from cache.segment import NewSegment, SegmentIndex, segment_name
from cache.sources import REFRESHED, SOURCES, has_sources, read_sources
from cache.writer import new_segment, write_errors

SEGMENT_BYTES = 64 << 30
"""Of frames, in a segment made of many: a bound on what one file of HDF5, or one commit of Zarr, has to hold."""


@dataclass(kw_only=True)
class RewriteSummary:
    """What a repair or a compaction did.

    Attributes:
        segments: before and after.
        clips: that the cache holds now.
        dropped: clips that are gone.
        restored: clips that are sound now, but were damaged around, or in one of two copies.
        unreadable: segments that are gone with clips whose names may not be known, and why.
        mended: what was wrong beside the clips.
        changed: whether anything was written or removed.
    """

    segments: tuple[int, int] = (0, 0)
    clips: int = 0
    dropped: list[DamagedClip] = field(default_factory=list)
    restored: list[DamagedClip] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    mended: list[str] = field(default_factory=list)
    changed: bool = False


def repair(path: StrPath, on_progress: Progress | None = None, on_rewrite: Progress | None = None) -> RewriteSummary:
    """Drop the damaged clips of a cache, so that `emi extract` can fill them again; keep every sound one.

    Args:
        path: `NAME.zarr` or `NAME.h5`.
        on_progress: called while the cache is read.
        on_rewrite: called while sound clips of damaged segments are written anew.

    Raises:
        CacheLockedError: another process writes the cache.
        CacheWriteError: no room or no right; no sound clip is lost.
        DamagedCacheError: the extra arrays are damaged; nothing was changed.
    """
    container = open_container(path)
    try:
        if container.read_attributes() is not None:
            container.lock(alone=True)
        found = verify(path, on_progress)
        summary = RewriteSummary(segments=(found.segments + len(found.unreadable),) * 2, clips=found.clips)
        header, index = open_damaged(container)
        if found.sound and not index.replaced:
            return summary
        if problems_of_extras(container):
            raise DamagedCacheError(
                f"{container.path} was left as it is: its extra arrays are damaged, which nothing can mend; restore "
                "them from a copy, or make the cache anew (`emi cache derive`)"
            )
        lost = {(clip.segment, clip.id) for clip in found.damaged if clip.lost}
        touched = {clip.segment for clip in found.damaged} | set(found.unreadable)
        live: set[str] = set()
        written = _Written(on_rewrite)
        replacements: list[tuple[Collection[str], NewSegment | None]] = [((name,), None) for name in found.unreadable]
        for segment in index.segments:
            sound = [i for i, clip_id in enumerate(segment.ids) if (segment.name, clip_id) not in lost]
            if segment.name in touched:
                keep = [i for i in sound if segment.ids[i] not in live]
                replacements.append(([segment.name], joined(container, header, [(segment, keep)], written)))
            live.update(segment.ids[i] for i in sound)
        _rewrite(container, header, index, replacements)
        summary.changed, summary.clips = True, len(live)
        summary.dropped = [clip for clip in found.damaged if clip.id not in live]
        summary.restored = [clip for clip in found.damaged if clip.id in live]
        summary.unreadable, summary.mended = found.unreadable, found.structure
        summary.segments = summary.segments[0], len(open_damaged(container)[1].segments)
        return summary
    finally:
        container.close()


def compact(
    path: StrPath,
    on_progress: Progress | None = None,
    on_rewrite: Progress | None = None,
    *,
    segment_bytes: int = SEGMENT_BYTES,
) -> RewriteSummary:
    """Make one segment of many neighbours, which are then removed, together with what crashes left behind.

    Args:
        path: `NAME.zarr` or `NAME.h5`.
        on_progress: called while the cache is verified, before anything is written.
        on_rewrite: called while the new segments are written.
        segment_bytes: of frames at most in a segment; those that hold more than half are left as they are.

    Raises:
        CacheLockedError: another process writes the cache.
        CacheWriteError: no room or no right; the clips are as they were.
        DamagedCacheError: something is damaged; nothing was changed.
    """
    container = open_container(path)
    try:
        if container.read_attributes() is not None:
            container.lock(alone=True)
        if not verify(path, on_progress).sound:
            raise DamagedCacheError(
                f"{container.path} is damaged, and was left as it is; `emi cache verify {container.path}` says where, "
                f"and `emi cache repair {container.path}` mends it"
            )
        header, index = open_damaged(container)
        seen: set[str] = set()
        written = _Written(on_rewrite)
        replacements: list[tuple[Collection[str], NewSegment | None]] = []
        for group in _groups(index.segments, header, segment_bytes):
            parts = [(segment, _first_seen(segment, seen)) for segment in group]
            if len(group) > 1 or len(parts[0][1]) < len(group[0].ids):
                replacements.append(([segment.name for segment in group], joined(container, header, parts, written)))
        before = len(index.segments)
        changed = bool(replacements or index.replaced or index.uncovered or container.leftovers()[0])
        if changed:
            _rewrite(container, header, index, replacements)
        else:
            with write_errors(container.path):
                changed = container.seal()
        after = len(open_damaged(container)[1].segments)
        return RewriteSummary(segments=(before, after), clips=len(seen), changed=changed)
    finally:
        container.close()


def joined(
    container: Container,
    header: Header,
    parts: Sequence[tuple[SegmentIndex, Sequence[int]]],
    written: "_Written | None" = None,
) -> NewSegment | None:
    """A segment that holds clips of others, under a name that sorts where the first of them did; None for no clips."""
    parts = [(segment, clips) for segment, clips in parts if clips]
    if not parts:
        return None
    ids = [segment.ids[i] for segment, clips in parts for i in clips]
    lengths = np.concatenate([np.diff(segment.offsets)[list(clips)] for segment, clips in parts])
    pieces = list(_pieces(parts))
    if written is not None:
        written.expect(len(ids), int(lengths.sum()), sum(float(segment.seconds[list(c)].sum()) for segment, c in parts))
    clip_pieces = [(segment, i, i + 1) for segment, clips in parts for i in clips]
    arrays: dict[str, Any] = {
        "frames": JoinedRows(container, "frames", pieces, header.dim, header.dtype, written),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "ids": np.array(ids, dtype=object),
        "seconds": np.concatenate([segment.seconds[list(clips)] for segment, clips in parts]),
        "checksums": np.concatenate([segment.checksums[list(clips)] for segment, clips in parts]),
    }
    if header.vad_names:
        arrays["vad"] = JoinedRows(container, "vad", pieces, 3, np.dtype(np.float32))
        arrays["vad_pooled"] = JoinedRows(container, "vad_pooled", clip_pieces, 3, np.dtype(np.float32))
    if any(has_sources(segment.attributes) for segment, _ in parts):
        arrays[SOURCES] = np.concatenate([_sources(container, segment)[list(clips)] for segment, clips in parts])
    time_of_first = parts[0][0].name.partition("-")[0]
    name = f"{time_of_first}-{segment_name().partition('-')[2]}"
    refreshed = any(segment.attributes.get(REFRESHED) for segment, _ in parts)
    return new_segment(name, arrays, header, refreshed=refreshed)


def _sources(container: Container, segment: SegmentIndex) -> Array:
    """What a segment says of its media; nothing where that is damaged."""
    try:
        return read_sources(container, segment)
    except Exception:  # a container may raise anything over damaged bytes
        return np.zeros((len(segment.ids), 3), np.int64)


class JoinedRows:
    """Rows of one array of several segments, read when they are asked for (`cache.segment.Rows`)."""

    def __init__(
        self,
        container: Container,
        array: str,
        pieces: Sequence[tuple[SegmentIndex, int, int]],
        columns: int,
        dtype: np.dtype[Any],
        written: "_Written | None" = None,
    ) -> None:
        self._container, self._array, self._pieces = container, array, pieces
        self._starts = np.cumsum([0, *(stop - start for _, start, stop in pieces)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), columns)
        self.dtype = dtype
        self._written = written

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        for number in range(first, len(self._pieces)):
            segment, begin, _ = self._pieces[number]
            low, high = max(start, int(self._starts[number])), min(stop, int(self._starts[number + 1]))
            if low >= high:
                break
            at = begin + low - int(self._starts[number])
            self._container.read_into(segment, self._array, [at], [out[low - start : high - start]])
        if self._written is not None:
            self._written.add(stop - start)
        return out


class _Written:
    """Rows that are to be written, and those that were, told as clips."""

    def __init__(self, on_rewrite: Progress | None) -> None:
        self._tell, self._lock = on_rewrite, threading.Lock()
        self._clips, self._rows, self._seconds, self._done = 0, 0, 0.0, 0

    def expect(self, clips: int, rows: int, seconds: float) -> None:
        """Add a segment."""
        self._clips, self._rows, self._seconds = self._clips + clips, self._rows + rows, self._seconds + seconds

    def add(self, rows: int) -> None:
        """Rows of frames were asked for, to be written; several threads may ask at once."""
        with self._lock:
            self._done += rows
            if self._tell:
                self._tell(self._clips * self._done // self._rows, self._clips, self._seconds * rows / self._rows)


def _rewrite(
    container: Container,
    header: Header,
    index: LoadedIndex,
    replacements: Sequence[tuple[Collection[str], NewSegment | None]],
) -> None:
    """Replace segments, finish what a crash left of an earlier replacement, and pack the whole index into one block."""
    with write_errors(container.path):
        # First: what says that they are replaced may be replaced itself.
        container.rewrite([(sorted(index.replaced), None), *replacements])
    with contextlib.suppress(Exception):  # the segments are committed
        digest = fp.digest(header.fingerprint)
        if names := load_index(container, header).uncovered:
            block = pack([read_segment_index(container, name, digest) for name in names])
            container.write_block(segment_name(), block)


def _groups(segments: Sequence[SegmentIndex], header: Header, segment_bytes: int) -> Iterator[list[SegmentIndex]]:
    """Neighbours that make one segment together."""
    row_bytes = header.dim * header.dtype.itemsize
    group: list[SegmentIndex] = []
    size = 0
    for segment in segments:
        own = int(segment.offsets[-1]) * row_bytes
        large = own > segment_bytes // 2 or (len(group) == 1 and size > segment_bytes // 2)
        if group and (large or size + own > segment_bytes):
            yield group
            group, size = [], 0
        group.append(segment)
        size += own
    if group:
        yield group


def _first_seen(segment: SegmentIndex, seen: set[str]) -> list[int]:
    """Clips of a segment that no segment before it holds."""
    new = [i for i, clip_id in enumerate(segment.ids) if clip_id not in seen]
    seen.update(segment.ids[i] for i in new)
    return new


def _pieces(parts: Sequence[tuple[SegmentIndex, Sequence[int]]]) -> Iterator[tuple[SegmentIndex, int, int]]:
    """The rows of clips, those that follow each other joined."""
    for segment, clips in parts:
        start = stop = -1
        for i in clips:
            if int(segment.offsets[i]) != stop:
                if stop > start:
                    yield segment, start, stop
                start = int(segment.offsets[i])
            stop = int(segment.offsets[i + 1])
        yield segment, start, stop
