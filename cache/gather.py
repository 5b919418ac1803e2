"""Read runs of neighbouring clips, checked, many at once: how a split becomes one array, and how a cache is verified.

Clips that lie one behind the other are read together and checked while their bytes are in the processor's cache. Where
a run cannot be read, its clips are read one by one, so that the damaged one can be named.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np

from cache.container import Container
from cache.format import Array, Header
from cache.index import SegmentIndex

RUN_BYTES = 4 << 20
"""Of frames, read together at most: large enough to pay for a thread's turn, small enough for the processor's cache."""
REMOTE_THREADS = 16
TURN = 4
"""Runs that a thread takes at a time."""

Stored = tuple[Array, Array | None, Array | None]
"""frames (rows, dim), vad (rows, 3), vad_pooled (clips, 3) as they are stored."""


@dataclass(frozen=True, slots=True)
class Run:
    """Clips first:last of a segment, which go to the rows of the output from `at` on."""

    segment: SegmentIndex
    first: int
    last: int
    at: int = 0

    @property
    def start(self) -> int:
        """First row of the segment's arrays."""
        return int(self.segment.offsets[self.first])

    @property
    def rows(self) -> int:
        """Rows in all."""
        return int(self.segment.offsets[self.last]) - self.start

    def clips(self) -> "Iterator[Run]":
        """The same clip by clip."""
        for i in range(self.first, self.last):
            yield Run(self.segment, i, i + 1, self.at + int(self.segment.offsets[i]) - self.start)


def plan_runs(
    segments: Sequence[SegmentIndex], segment_of: Sequence[int], within: Sequence[int], row_bytes: int
) -> list[Run]:
    """Join clips that follow each other in a segment, up to `RUN_BYTES`; outputs follow each other as the clips do.

    Args:
        segments: of the cache.
        segment_of: number of each clip's segment.
        within: number of each clip in its segment.
        row_bytes: of one frame.
    """
    runs: list[Run] = []
    at = 0
    for number, clip in zip(segment_of, within, strict=True):
        segment = segments[number]
        rows = int(segment.offsets[clip + 1]) - int(segment.offsets[clip])
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.segment is segment
            and last.last == clip
            and (at + rows - last.at) * row_bytes <= RUN_BYTES
        ):
            runs[-1] = Run(segment, last.first, clip + 1, last.at)
        else:
            runs.append(Run(segment, clip, clip + 1, at))
        at += rows
    return runs


def read_stored(container: Container, header: Header, run: Run, frames: Array | None = None) -> Stored:
    """Read the arrays of a run, unchecked; into `frames` where it is given: (rows, dim), C-contiguous."""
    if frames is None:
        frames = np.empty((run.rows, header.dim), header.dtype)
    container.read_into(run.segment, "frames", run.start, frames)
    if not header.vad_names:
        return frames, None, None
    vad, pooled = np.empty((run.rows, 3), np.float32), np.empty((run.last - run.first, 3), np.float32)
    container.read_into(run.segment, "vad", run.start, vad)
    container.read_into(run.segment, "vad_pooled", run.first, pooled)
    return frames, vad, pooled


def mismatches(run: Run, stored: Stored) -> dict[int, str]:
    """Clips of a run, by their number in the segment, whose bytes do not match their checksum."""
    frames, vad, pooled = stored
    offsets = (run.segment.offsets[run.first : run.last + 1] - run.start).tolist()
    checksums = run.segment.checksums[run.first : run.last].tolist()
    found = {}
    for i, checksum in enumerate(checksums):
        rows = slice(offsets[i], offsets[i + 1])
        crc = google_crc32c.value(frames[rows])
        if vad is not None and pooled is not None:
            crc = google_crc32c.extend(google_crc32c.extend(crc, vad[rows]), pooled[i])
        if crc != checksum:
            found[run.first + i] = "the bytes do not match their checksum"
    return found


def read_run(container: Container, header: Header, run: Run, out: Array | None = None) -> dict[int, str]:
    """Read and check a run, and put each frame followed by its VAD into rows `run.at` on of `out`, if given and sound.

    Returns:
        What is wrong with the run's clips, by their number in the segment; empty where they are sound.
    """
    target = None if out is None else out[run.at : run.at + run.rows]
    direct = target is not None and not header.vad_names and target.dtype == header.dtype and target.flags.c_contiguous
    try:
        stored = read_stored(container, header, run, target if direct else None)
    except Exception as error:  # a container may raise anything over damaged bytes
        if run.last - run.first == 1:
            return {run.first: repr(error)}
        return {n: why for clip in run.clips() for n, why in read_run(container, header, clip, out).items()}
    wrong = mismatches(run, stored)
    if target is not None and not direct and not wrong:  # damaged numbers might overflow on the way
        frames, vad, _ = stored
        target[:, : header.dim] = frames
        if vad is not None:
            target[:, header.dim :] = vad
    return wrong


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
