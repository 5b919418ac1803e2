"""Put new segments in the place of old ones: `repair` without the damaged clips, `compact` as one of many.

`cache.maintenance.remove` does so without the clips that it is given.

A new segment is copied row by row from the old ones, so that memory stays flat, and keeps the checksums that its clips
were written with: what a copy spoils, the checksums find. The container commits it before the old ones go.
"""

import contextlib
import glob
import itertools
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.containers.by_suffix import open_container
from cache.containers.container import Container, NewSegment, SegmentIndex, segment_name
from cache.containers.zarr_group import ZarrContainer
from cache.errors import CacheError, DamagedCacheError
from cache.format import Array, Header, Layout
from cache.index import load_index, write_block
from cache.maintenance.verify import DamagedClip, Progress, open_damaged, problems_of_extras, verify
from cache.paths import StrPath
from cache.reader import open_cache
from cache.sources import REFRESHED, SOURCES, SOURCES_CRC32C, read_sources
from cache.writer import new_segment, write_errors

SEGMENT_BYTES = 64 << 30
"""Of frames, in a segment made of many: a bound on what one file of HDF5, or one commit of Zarr, has to hold."""

Part = tuple[SegmentIndex, Sequence[int]]
"""Some clips of a segment, by their numbers in it."""


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

    segments: tuple[int, int]
    clips: int
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
    with alone(path) as container:
        found = verify(path, on_progress)
        before = found.segments + len(found.unreadable)
        header, index = open_damaged(container)
        if found.sound and not index.replaced:
            return RewriteSummary(segments=(before, before), clips=found.clips, changed=_remove_stopped(container))
        if problems_of_extras(container):
            raise DamagedCacheError(
                f"{container.path} was left as it is: its extra arrays are damaged, which nothing can mend; restore "
                "them from a copy, or make the cache anew (`emi cache derive`)"
            )
        lost = {(clip.segment, clip.id) for clip in found.damaged if clip.lost}
        touched = {clip.segment for clip in found.damaged}
        holders = first_holders(index.segments, lost)
        groups = [[segment] for segment in index.segments if segment.name in touched]
        after = rewrite(container, header, [*index.replaced, *found.unreadable], groups, holders, on_rewrite)
        return RewriteSummary(
            segments=(before, after),
            clips=len(holders),
            dropped=[clip for clip in found.damaged if clip.id not in holders],
            restored=[clip for clip in found.damaged if clip.id in holders],
            unreadable=found.unreadable,
            mended=found.structure,
            changed=True,
        )


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
    with alone(path) as container:
        if not verify(path, on_progress).sound:
            raise DamagedCacheError(
                f"{container.path} is damaged, and was left as it is; `emi cache verify {container.path}` says where, "
                f"and `emi cache repair {container.path}` mends it"
            )
        header, index = open_damaged(container)
        holders = first_holders(index.segments)
        groups = [
            group
            for group in _groups(index.segments, header, segment_bytes)
            if len(group) > 1 or any(holders[clip_id] != group[0].name for clip_id in group[0].ids)
        ]
        before = after = len(index.segments)
        changed = bool(groups or index.replaced or index.uncovered or container.leftovers()[0])
        if changed:
            after = rewrite(container, header, index.replaced, groups, holders, on_rewrite)
        else:
            with write_errors(container.path):
                changed = container.seal()
            changed |= _remove_stopped(container)
        return RewriteSummary(segments=(before, after), clips=len(holders), changed=changed)


@contextlib.contextmanager
def alone(path: StrPath) -> Iterator[Container]:
    """Open a cache that nobody else may write meanwhile."""
    with contextlib.closing(open_container(path)) as container:
        if container.read_attributes() is not None:
            with write_errors(container.path):
                container.lock(alone=True)
        yield container


def first_holders(segments: Sequence[SegmentIndex], lost: Collection[tuple[str, str]] = ()) -> dict[str, str]:
    """The segment of each clip that counts: the first of those that hold it, and did not lose it (segment, clip)."""
    return {
        clip_id: segment.name
        for segment in reversed(segments)
        for clip_id in segment.ids
        if (segment.name, clip_id) not in lost
    }


def rewrite(
    container: Container,
    header: Header,
    removed: Collection[str],
    groups: Sequence[Sequence[SegmentIndex]],
    holders: Mapping[str, str],
    on_rewrite: Progress | None,
) -> int:
    """Remove segments, join the clips that count of each group of others, and pack the whole index into one block.

    Returns:
        The number of segments now.
    """
    parts_of = []
    for group in groups:
        kept = [[i for i, clip_id in enumerate(s.ids) if holders.get(clip_id) == s.name] for s in group]
        parts_of.append([part for part in zip(group, kept, strict=True) if part[1]])
    add = _counter([part for parts in parts_of for part in parts], on_rewrite)
    new = [_joined(container, header, parts, add) if parts else None for parts in parts_of]
    names = [[segment.name for segment in group] for group in groups]
    with write_errors(container.path):
        # First: what says that they are replaced may be replaced itself.
        container.rewrite([(sorted(removed), None), *zip(names, new, strict=True)])
    _remove_stopped(container)
    loaded = load_index(container, header)
    write_block(container, loaded.uncovered, header)
    return len(loaded.segments)


def _remove_stopped(container: Container) -> bool:
    """Remove folders that were put aside beside an HDF5 file (`cache.containers.hdf5_file`), but hold nothing more.

    A seal that was killed after the new file had its name leaves such a folder, whose segments the file has joined.

    Returns:
        Whether there were any.
    """
    place = Path(os.path.realpath(container.path))
    folders = place.parent.glob(f"{glob.escape(place.name)}.stopped-*.zarr") if container.one_writer else ()
    removed = False
    for folder in folders:
        with contextlib.suppress(CacheError, OSError), open_cache(folder) as aside, open_cache(place) as store:
            aside.header.must_match(store.header, store.path)
            same = all(clip_id in store and aside.checksum(clip_id) == store.checksum(clip_id) for clip_id in aside)
            if same and not ZarrContainer(str(folder)).strays():
                shutil.rmtree(folder, ignore_errors=True)
                removed = True
    return removed


def _joined(container: Container, header: Header, parts: Sequence[Part], add: Callable[[int], None]) -> NewSegment:
    """A segment that holds clips of others, under a name that sorts where the first of them did."""

    def column(of: Callable[[SegmentIndex], Array]) -> Array:
        return np.concatenate([of(segment)[list(clips)] for segment, clips in parts])

    ids = [segment.ids[i] for segment, clips in parts for i in clips]
    lengths = column(lambda segment: np.diff(segment.offsets))
    segment_of = [segment for segment, clips in parts for _ in clips]
    in_frames = segment_of, column(lambda segment: segment.offsets[:-1]), lengths
    in_clips = segment_of, column(lambda segment: np.arange(len(segment.ids))), np.ones_like(lengths)
    numbers = {
        name: _JoinedRows(container, name, *(in_frames if layout.by_frame else in_clips), layout)
        for name, layout in header.layout.items()
    }
    numbers["frames"].on_read = add
    arrays: dict[str, Any] = {
        **numbers,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "ids": np.array(ids, dtype=object),
        "seconds": column(lambda segment: segment.seconds),
        "checksums": column(lambda segment: segment.checksums),
    }
    if any(SOURCES_CRC32C in segment.attributes for segment, _ in parts):
        arrays[SOURCES] = column(lambda segment: _sources(container, segment))
    name = f"{parts[0][0].name.partition('-')[0]}-{segment_name().partition('-')[2]}"  # the time of the first
    return new_segment(name, arrays, header, refreshed=any(s.attributes.get(REFRESHED) for s, _ in parts))


def _sources(container: Container, segment: SegmentIndex) -> Array:
    """What a segment says of its media; nothing where that is damaged."""
    try:
        return read_sources(container, segment)
    except Exception:  # a container may raise anything over damaged bytes
        return np.zeros((len(segment.ids), 3), np.int64)


class _JoinedRows:
    """Rows of one array of several segments, read when they are asked for (`cache.containers.container.Rows`).

    Args:
        container: of the cache.
        array: of each segment.
        segment_of: the segment of each clip.
        starts: (clips,) first row of each clip in its segment's array.
        lengths: (clips,) rows of each.
        layout: of the array.

    Attributes:
        on_read: called with the number of rows that were read.
    """

    def __init__(
        self,
        container: Container,
        array: str,
        segment_of: Sequence[SegmentIndex],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        layout: Layout,
    ) -> None:
        self._container, self._array, self._segment_of = container, array, segment_of
        self.on_read: Callable[[int], None] = lambda _: None
        self._ends = np.cumsum(lengths)
        self._begins = self._ends - lengths
        self._shift = starts - self._begins
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *layout.shape)
        self.dtype = layout.dtype

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        clips = range(int(np.searchsorted(self._ends, start, "right")), int(np.searchsorted(self._begins, stop)))
        for _, of_segment in itertools.groupby(clips, lambda clip: self._segment_of[clip].name):
            these = list(of_segment)
            low, high = np.maximum(self._begins[these], start), np.minimum(self._ends[these], stop)
            places = [out[a:b] for a, b in zip((low - start).tolist(), (high - start).tolist(), strict=True)]
            starts = (low + self._shift[these]).tolist()
            self._container.read_into(self._segment_of[these[0]], self._array, starts, places)
        self.on_read(stop - start)
        return out


def _counter(parts: Sequence[Part], on_rewrite: Progress | None) -> Callable[[int], None]:
    """What counts rows of frames that are written, and tells them as clips."""
    clips = sum(len(clips) for _, clips in parts)
    rows = sum(int(np.diff(segment.offsets)[list(clips)].sum()) for segment, clips in parts)
    seconds = sum(float(np.nansum(segment.seconds[list(clips)])) for segment, clips in parts)
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        if on_rewrite:
            on_rewrite(clips * done // rows, clips, seconds * more / rows)

    return add


def _groups(segments: Sequence[SegmentIndex], header: Header, segment_bytes: int) -> list[list[SegmentIndex]]:
    """Neighbours that make one segment together; a large one stays alone."""
    groups: list[list[SegmentIndex]] = []
    size = math.inf  # of the last group; infinite where nothing joins it
    for segment in segments:
        own = int(segment.offsets[-1]) * header.dim * header.dtype.itemsize
        large = own > segment_bytes // 2
        if large or size + own > segment_bytes:
            groups.append([])
            size = 0
        groups[-1].append(segment)
        size = math.inf if large else size + own
    return groups
