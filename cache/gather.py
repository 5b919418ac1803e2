"""Read runs of neighbouring clips, checked, many at once: how a split becomes one array, and how a cache is verified.

Clips are read in the order in which they are stored, whatever the order that is asked for: those that lie one behind
the other together, each straight to its place, and checked while its bytes are in the processor's cache. Where a run
cannot be read, its clips are read one by one, so that the damaged one can be named.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.container import Container
from cache.file_rows import page_aligned
from cache.format import Array, Header
from cache.index import SegmentIndex

RUN_BYTES = 4 << 20
"""Of frames, read together at most: large enough to pay for a thread's turn, small enough for the processor's cache."""
REMOTE_THREADS = 16
TURN = 4
"""Runs that a thread takes at a time."""

Stored = tuple[Sequence[Array], Sequence[Array] | None, Array | None]
"""For each clip frames (rows, dim), vad (rows, 3) and vad_pooled (3,), as they are stored."""


@dataclass(frozen=True)
class Run:
    """Clips first:last of a segment, and the first row of the output of each; no rows where none are wanted."""

    segment: SegmentIndex
    first: int
    last: int
    at: Sequence[int] = ()

    @property
    def start(self) -> int:
        """First row of the segment's arrays."""
        return int(self.segment.offsets[self.first])

    @property
    def rows(self) -> int:
        """Rows in all."""
        return int(self.segment.offsets[self.last]) - self.start

    @functools.cached_property
    def bounds(self) -> list[int]:
        """(clips + 1,) first rows of its clips, counted from `start`."""
        return list((self.segment.offsets[self.first : self.last + 1] - self.start).tolist())

    def clips(self) -> "Iterator[Run]":
        """The same clip by clip."""
        for i in range(self.first, self.last):
            yield Run(self.segment, i, i + 1, self.at[i - self.first : i - self.first + 1])


def plan_runs(
    segments: Sequence[SegmentIndex],
    segment_of: NDArray[np.integer],
    within: NDArray[np.integer],
    at: NDArray[np.integer],
    row_bytes: int,
) -> list[Run]:
    """Join clips that follow each other in a segment, up to `RUN_BYTES`.

    Args:
        segments: of the cache.
        segment_of: number of each clip's segment.
        within: number of each clip in its segment.
        at: first row of each clip in the output.
        row_bytes: of one frame.
    """
    order = np.lexsort((within, segment_of))
    runs: list[Run] = []
    places: list[int] = []
    segment, first, last, end = None, 0, 0, 0
    for number, clip, row in zip(segment_of[order].tolist(), within[order].tolist(), at[order].tolist(), strict=True):
        follows = segment is segments[number] and clip == last
        if not follows or int(segments[number].offsets[clip + 1]) > end:
            if segment is not None:
                runs.append(Run(segment, first, last, places))
            segment, first, places = segments[number], clip, []
            end = int(segment.offsets[clip]) + RUN_BYTES // row_bytes
        places.append(row)
        last = clip + 1
    return runs if segment is None else [*runs, Run(segment, first, last, places)]


def read_stored(container: Container, header: Header, run: Run, places: Sequence[Array] = ()) -> Stored:
    """Read the arrays of a run, unchecked; frames into the places of their clips (C-contiguous), where given."""
    if places:
        frames = list(places)
        container.read_into(run.segment, "frames", run.start, frames)
    else:
        together = page_aligned((run.rows, header.dim), header.dtype)
        container.read_into(run.segment, "frames", run.start, [together])
        frames = [together[start:stop] for start, stop in itertools.pairwise(run.bounds)]
    if not header.vad_names:
        return frames, None, None
    vad, pooled = np.empty((run.rows, 3), np.float32), np.empty((run.last - run.first, 3), np.float32)
    container.read_into(run.segment, "vad", run.start, [vad])
    container.read_into(run.segment, "vad_pooled", run.first, [pooled])
    return frames, [vad[start:stop] for start, stop in itertools.pairwise(run.bounds)], pooled


def mismatches(run: Run, stored: Stored) -> dict[int, str]:
    """Clips of a run, by their number in the segment, whose bytes do not match their checksum."""
    frames, vad, pooled = stored
    found = {}
    for i, checksum in enumerate(run.segment.checksums[run.first : run.last].tolist()):
        crc = google_crc32c.value(frames[i])
        if vad is not None and pooled is not None:
            crc = google_crc32c.extend(google_crc32c.extend(crc, vad[i]), pooled[i])
        if crc != checksum:
            found[run.first + i] = "the bytes do not match their checksum"
    return found


def read_run(container: Container, header: Header, run: Run, out: Array | None = None) -> dict[int, str]:
    """Read and check a run, and put each frame followed by its VAD into its rows of `out`, if given and sound.

    Returns:
        What is wrong with the run's clips, by their number in the segment; empty where they are sound.
    """
    places = [] if out is None else _places(run, out)
    direct = out is not None and not header.vad_names and out.dtype == header.dtype and out.flags.c_contiguous
    try:
        stored = read_stored(container, header, run, places if direct else ())
    except Exception as error:  # a container may raise anything over damaged bytes
        if run.last - run.first == 1:
            return {run.first: repr(error)}
        return {n: why for clip in run.clips() for n, why in read_run(container, header, clip, out).items()}
    wrong = mismatches(run, stored)
    if not direct and not wrong:  # damaged numbers might overflow on the way
        frames, vad, _ = stored
        for i, place in enumerate(places):
            place[:, : header.dim] = frames[i]
            if vad is not None:
                place[:, header.dim :] = vad[i]
    return wrong


def _places(run: Run, out: Array) -> list[Array]:
    """The rows of `out` that each clip takes."""
    bounds = itertools.pairwise(run.bounds)
    return [out[at : at + stop - start] for at, (start, stop) in zip(run.at, bounds, strict=True)]


def read_runs(
    container: Container, header: Header, runs: Sequence[Run], out: Array | None = None
) -> Iterator[tuple[Run, dict[int, str]]]:
    """`read_run` over many runs, several threads taking a good many each; in their order."""
    threads = min(len(runs), REMOTE_THREADS if container.remote else len(os.sched_getaffinity(0)))
    if threads <= 1:
        for run in runs:
            yield run, read_run(container, header, run, out)
        return

    def read(number: int) -> list[dict[int, str]]:
        return [read_run(container, header, run, out) for run in runs[number : number + TURN]]

    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(runs), TURN)
        for start, wrong in zip(starts, pool.map(read, starts), strict=True):
            yield from zip(runs[start : start + TURN], wrong, strict=True)
