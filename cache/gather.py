"""Read runs of neighbouring clips, checked, many at once: how a split becomes one array, and how a cache is verified.

Clips are read in the order in which they are stored, whatever the order that is asked for: those that lie one behind
the other together, each straight to its place, and checked while its bytes are in the processor's cache. Where a run
cannot be read, its clips are read one by one, so that the damaged one can be named.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.containers.container import Container, SegmentIndex
from cache.containers.file_rows import page_aligned
from cache.format import Array, Header
from cache.system.machine import available_cores

RUN_BYTES = 4 << 20
"""Of frames, read together at most: large enough to pay for a thread's turn, small enough for the processor's cache."""
REMOTE_THREADS = 16
TURN = 4
"""Runs that a thread takes at a time."""

Stored = Mapping[str, Sequence[Array]]
"""Of each clip the arrays of `Header.layout` by name, (rows, …), or (1, …) where they have a row per clip."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Clips one after the other.

    Attributes:
        rows: (total frames, dim [+ 3]), each frame followed by its VAD where the cache has it.
        offsets: (clips + 1,) int64, clip i is rows offsets[i]:offsets[i + 1].
        times: (total frames, 2) float32, see `Clip`; None where the cache has none.
        valid: (total frames,) bool, see `Clip`; None where the cache has none.
    """

    rows: Array
    offsets: NDArray[np.int64]
    times: Array | None = None
    valid: Array | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Clips of one segment, in the order of storage.

    Attributes:
        segment: that holds them.
        clips: their numbers in it.
        starts: first row of each in the segment's arrays.
        lengths: frames of each.
        at: first row of each in the output, where there is one.
    """

    segment: SegmentIndex
    clips: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    at: Sequence[int] = ()


def plan_runs(
    segments: Sequence[SegmentIndex],
    segment_of: NDArray[np.integer],
    within: NDArray[np.integer],
    at: NDArray[np.integer],
    header: Header,
) -> list[Run]:
    """Put clips of a segment together, up to about `RUN_BYTES`.

    Args:
        segments: of the cache.
        segment_of: number of each clip's segment.
        within: number of each clip in its segment.
        at: first row of each clip in the output.
        header: of the cache.
    """
    run_rows = max(1, RUN_BYTES // (header.dim * header.dtype.itemsize))
    order = np.lexsort((within, segment_of))
    segment_of, within, at = segment_of[order], within[order], at[order]
    runs: list[Run] = []
    for group in np.split(np.arange(len(order)), np.flatnonzero(np.diff(segment_of)) + 1):
        if not len(group):
            break
        segment, clips = segments[segment_of[group[0]]], within[group]
        starts = segment.offsets[clips]
        lengths = segment.offsets[clips + 1] - starts
        number = (np.cumsum(lengths) - lengths) // run_rows
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(group)]
        columns = [column.tolist() for column in (clips, starts, lengths, at[group])]
        for first, last in itertools.pairwise(bounds):
            runs.append(Run(segment, *(column[first:last] for column in columns)))
    return runs


def read_stored(container: Container, header: Header, run: Run, places: Sequence[Array] = ()) -> Stored:
    """Read the arrays of a run, unchecked; frames into the places of their clips (C-contiguous), where given."""
    stored = {}
    for name, layout in header.layout.items():
        starts, lengths = (run.starts, run.lengths) if layout.by_frame else (run.clips, [1] * len(run.clips))
        rows = (places if name == "frames" else ()) or _cut(
            page_aligned((sum(lengths), *layout.shape), layout.dtype), lengths
        )
        container.read_into(run.segment, name, starts, rows)
        stored[name] = rows
    return stored


def _cut(rows: Array, lengths: Sequence[int]) -> list[Array]:
    return [rows[stop - length : stop] for stop, length in zip(itertools.accumulate(lengths), lengths, strict=True)]


def mismatches(run: Run, stored: Stored) -> dict[int, str]:
    """Clips of a run, by their number in the segment, whose bytes do not match their checksum."""
    checksums = run.segment.checksums
    found = {}
    for number, *arrays in zip(run.clips, *stored.values(), strict=True):
        crc = 0
        for array in arrays:
            crc = google_crc32c.extend(crc, array)
        if crc != checksums[number]:
            found[number] = "the bytes do not match their checksum"
    return found


def read_run(container: Container, header: Header, run: Run, out: Loaded | None = None) -> dict[int, str]:
    """Read and check a run, and put it into its rows of `out`, if given and sound.

    Returns:
        What is wrong with the run's clips, by their number in the segment; empty where they are sound.
    """
    parts = [slice(at, at + rows) for at, rows in zip(run.at, run.lengths, strict=True)] if out is not None else []
    places = [out.rows[part] for part in parts] if out is not None else []
    direct = out is not None and not header.vad_names and out.rows.dtype == header.dtype and out.rows.flags.c_contiguous
    try:
        stored = read_stored(container, header, run, places if direct else ())
    except Exception as error:  # a container may raise anything over damaged bytes
        columns = (run.clips, run.starts, run.lengths, *([run.at] if run.at else []))
        if len(run.clips) == 1:
            return {run.clips[0]: repr(error)}
        alone = (Run(run.segment, *([column[i]] for column in columns)) for i in range(len(run.clips)))
        return {n: why for clip in alone for n, why in read_run(container, header, clip, out).items()}
    wrong = mismatches(run, stored)
    if out is None or wrong:  # damaged numbers might overflow on the way
        return wrong
    for i, (part, place) in enumerate(zip(parts, places, strict=True)):
        if not direct:
            place[:, : header.dim] = stored["frames"][i]
            if "vad" in stored:
                place[:, header.dim :] = stored["vad"][i]
        if out.times is not None:
            out.times[part] = stored["times"][i]
        if out.valid is not None:
            out.valid[part] = stored["valid"][i]
    return wrong


def read_runs(
    container: Container, header: Header, runs: Sequence[Run], out: Loaded | None = None
) -> Iterator[tuple[Run, dict[int, str]]]:
    """`read_run` over many runs, several threads taking a good many each; in their order."""
    threads = min(len(runs), REMOTE_THREADS if container.remote else available_cores())
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


def read_segment(container: Container, header: Header, segment: SegmentIndex) -> Iterator[tuple[Run, dict[int, str]]]:
    """`read_runs` over all clips of a segment."""
    clips = np.arange(len(segment.ids))
    return read_runs(container, header, plan_runs([segment], np.zeros_like(clips), clips, clips, header))
