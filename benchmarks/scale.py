"""How opening a cache grows with its clips and segments, and what 100,000 hours would take:

    python benchmarks/scale.py [--quick] [--json FILE] [--usd-per-gb-month X] [--usd-per-1000-puts X] [...]

Caches are really written, with one tiny frame per clip, and opened by fresh interpreters with a warm page cache. The
second table is calculated: requests and objects are counted on a few segments that are written into an object store in
memory, and multiplied; seconds are those of the first table, drawn out by the growth between its two largest sizes.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # benchmarks/ holds a file named like the package it measures

import numpy as np

from benchmarks._machine import header_line, peak_mb, remove, stored
from benchmarks._scale_plan import plan, print_plan
from benchmarks._timing import figure

SIZES = (10_000, 100_000, 1_000_000)
PER_SEGMENT = (1, 100, 10_000)
MOST_SEGMENTS = 10_000
"""Of one clip each, a million would be 11 million files."""
OPENINGS = 3


def main() -> None:
    """Build, open, extrapolate."""
    options = parse()
    if options.open:
        print(json.dumps(open_and_measure(options.open)))
        return
    rows = growth(options)
    planned = plan(rows, options)
    print(header_line() + "\n")
    print_growth(rows)
    print_plan(planned, options)
    if options.json:
        Path(options.json).write_text(json.dumps([*rows, *planned], indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a thousandth of the clips: does it run at all?")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--hours", type=float, default=100_000, help="of media to plan for")
    parser.add_argument("--clip-seconds", type=float, default=6.9, help="mean length of a clip")
    parser.add_argument("--usd-per-gb-month", type=float, default=0.023, help="assumed: object storage")
    parser.add_argument("--usd-per-1000-puts", type=float, default=0.005, help="assumed: PUT and LIST requests")
    parser.add_argument("--usd-per-1000-gets", type=float, default=0.0004, help="assumed: GET requests")
    parser.add_argument("--open", help=argparse.SUPPRESS)  # what the fresh interpreters are called with
    return parser.parse_args()


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each container, clips per segment, and size; larger caches grow out of smaller ones."""
    rows = []
    sizes, variants, most = (
        ((10, 100, 1000), (1, 10, 100), 10) if options.quick else (SIZES, PER_SEGMENT, MOST_SEGMENTS)
    )
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".zarr", ".h5"):
            for per_segment in variants:
                path = Path(folder) / f"c{suffix}"
                before: dict[str, Any] = {}
                there = 0
                for clips in sizes:
                    if clips < per_segment or clips // per_segment > most:
                        continue
                    name = f"{suffix[1:]}, {per_segment:,} clips a segment, {clips:,} clips"
                    print(f"{name} ...", file=sys.stderr, flush=True)
                    extend(path, there, clips, per_segment)
                    there = clips
                    row = {"name": name, "container": suffix, "per_segment": per_segment, "clips": clips}
                    row |= opening(path, 1 if options.quick else OPENINGS)
                    if before:
                        step = math.log(row["clips"] / before["clips"])
                        row["growth_exponent"] = math.log(row["open_seconds"] / before["open_seconds"]) / step
                    rows.append(row)
                    before = row
                remove(path)
    return rows


def extend(path: Path, first: int, last: int, per_segment: int) -> None:
    """Write clips first:last, each one frame of two features, in segments of so many."""
    from cache import CacheWriter, Clip, Header

    frames = np.ones((1, 2), np.float16)
    fsync, os.fsync = os.fsync, lambda _: None  # writing is not measured here, and a power cut spoils nothing
    try:
        header = Header(fingerprint={"dtype": "float16"}, dim=2)
        with CacheWriter(path, header, segment_seconds=math.inf) as writer:
            for i in range(first, last):
                writer.add(Clip(f"speaker{i // 1000:04d}/{i:07d}", frames, None, None, 1.0))
                if (i + 1) % per_segment == 0:
                    writer.commit()
    finally:
        os.fsync = fsync


def opening(path: Path, passes: int) -> dict[str, Any]:
    """What fresh interpreters measure, in the median, and what lies on the disk."""
    command = [sys.executable, __file__, "--open", str(path)]
    runs = []
    for _ in range(passes):
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(answer.stdout))
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    files, size = stored(path)
    return medians | {"files": files, "megabytes": size / 1e6}


def open_and_measure(path: str) -> dict[str, float]:
    """Open a cache in this interpreter, libraries imported before; peak memory with and without."""
    import cache.containers.hdf5_file
    import cache.containers.zarr_group
    import cache.reader

    libraries = peak_mb()
    started = time.perf_counter()
    store = cache.reader.open_cache(path)
    seconds = time.perf_counter() - started
    found = {"segments": len(store.segments), "opened_clips": len(store)}
    return found | {"open_seconds": seconds, "peak_mb": peak_mb(), "libraries_mb": libraries}


def print_growth(rows: list[dict[str, Any]]) -> None:
    """Markdown, ready for docs/scale.md."""
    print("| container | clips a segment | clips | segments | files | open s | peak MB | of it libraries | exponent |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        counts = [f"{row[key]:,.0f}" for key in ("per_segment", "clips", "segments", "files")]
        memory = [f"{row[key]:,.0f}" for key in ("peak_mb", "libraries_mb")]
        exponent = f"{row['growth_exponent']:.2f}" if "growth_exponent" in row else ""
        print(f"| {row['container']} | {' | '.join([*counts, figure(row['open_seconds']), *memory, exponent])} |")
    print(
        "\nopen s: in a fresh interpreter, libraries imported, page cache warm. exponent: 1 is linear, between this "
        f"size and the one before. Not built: more than {MOST_SEGMENTS:,} segments.\n"
    )


if __name__ == "__main__":
    main()
