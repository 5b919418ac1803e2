"""The feature cache beside what the field uses, on the same clips, in one run:

    python benchmarks/cache.py [--quick] [--row NAME] [--clips N] [--dim D] [--json FILE]

Every row runs in processes of its own: one writes, fresh ones open, one reads. Every speed is the median of several
passes with a warm page cache. A split is gathered into one array that is there before the clock starts; each time,
numpy copies the same clips, one by one, from a warm memory map into the same places right before, and the ratio is that
of the pair, because a shared machine changes its speed from second to second.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # this file is named like the package it measures

from benchmarks._feature_clips import EMI, RAVDESS, Case, FeatureClips
from benchmarks._machine import header_line, in_own_process, memory_mb, remove, room_bytes, stored
from benchmarks._stores import LIBRARIES, STORES, EmiZarr
from benchmarks._timing import figure, in_pairs, seconds_of

SHARED = "emi, shared_load"
ROWS = (*STORES, SHARED)
WRITE_PASSES, OPEN_PASSES, VERIFY_PASSES = 3, 5, 3
PAIRS = 5
"""Of copying and gathering, at least."""
RANDOM_CLIPS = 300
PAGE = 4096
"""Where source and target of a copy begin within a page decides its speed on some AMD processors (2 to 14 GB/s)."""
NOTES = """
write s: until the writer is closed; emi has flushed every segment to the disk by then (fsync), the others nothing.
on disk s: the same and a sync of the system. open ms: in a fresh process, libraries imported, until the ids are known
and one clip is read. random clip ms: median over 300. GB/s: the training split into one array, clips in shuffled order
or in the order of storage; x numpy: numpy's time for copying the same clips one by one from a memory map, divided by
this row's (numpy copies with one thread, emi reads with one per core). emi checks a CRC-32C of every clip on every
read; the others check nothing, neither on reading nor on request (verify)."""
COLUMNS: dict[str, tuple[str, float]] = {
    "write s": ("write_seconds", 1),
    "on disk s": ("durable_seconds", 1),
    "MB": ("megabytes", 1),
    "files": ("files", 1),
    "open ms": ("open_seconds", 1000),
    "random clip ms": ("random_clip_ms", 1),
    "shuffled GB/s": ("shuffled_gb_s", 1),
    "x numpy": ("shuffled_vs_numpy", 1),
    "stored order GB/s": ("stored_gb_s", 1),
    "x numpy ": ("stored_vs_numpy", 1),
    "verify GB/s": ("verify_gb_s", 1),
}
"""Title, key of the row, factor."""


def main() -> None:
    """Run the rows of both cases and print the tables."""
    options = parse()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options, Path(folder)):
            reference = Path(folder) / "reference.npy"
            in_own_process(LIBRARIES, write_reference, case, reference)
            results += [run_row(row, case, Path(folder) / "row", reference, options) for row in options.row or ROWS]
            remove(reference)
    print_tables(results)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small clips, one pass: does it run at all?")
    parser.add_argument("--row", action="append", choices=ROWS, metavar="NAME", help=f"only this: {'; '.join(ROWS)}")
    parser.add_argument("--clips", type=int, help="clips of both cases [default: 1,200 and 12,660]")
    parser.add_argument("--dim", type=int, help="features per frame of both cases [default: 1024 and 256]")
    parser.add_argument("--json", help="write the rows here")
    return parser.parse_args()


def cases(options: argparse.Namespace, folder: Path) -> list[Case]:
    """RAVDESS and EMI, as the command line changes them, and with fewer features where they would not fit."""
    chosen = [replace(RAVDESS, clips=40, train=24, dim=32)] if options.quick else [RAVDESS, EMI]
    fitting = []
    for case in chosen:
        clips = options.clips or case.clips
        case = replace(case, clips=clips, train=max(1, clips * case.train // case.clips), dim=options.dim or case.dim)
        while 4 * case.total_bytes() > room_bytes(folder) and case.dim > 1:
            case = replace(case, dim=case.dim // 2)
        fitting.append(case)
    return fitting


def run_row(row: str, case: Case, folder: Path, reference: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row; what it has written is removed."""
    print(f"{case.name}: {row} ...", file=sys.stderr, flush=True)
    lengths = case.lengths()
    result: dict[str, Any] = {"name": row, "case": case.name, "clips": case.clips, "dim": case.dim}
    result |= {"mean_frames": float(lengths.mean()), "frames": [int(lengths.min()), int(lengths.max())]}
    result |= {"gigabytes": case.total_bytes() / 1e9, "split_clips": case.train}
    try:
        if row == SHARED:
            in_own_process(LIBRARIES, write, "emi Zarr", case, folder, 1)
            for which in ("first", "second"):
                figures = in_own_process(LIBRARIES, shared, case, folder)
                result |= {f"{which}_{key}": value for key, value in figures.items()}
            return result
        result |= in_own_process(LIBRARIES, write, row, case, folder, 1 if options.quick else WRITE_PASSES)
        passes = 1 if options.quick else OPEN_PASSES
        seconds = [in_own_process(LIBRARIES, open_once, row, folder) for _ in range(passes)]
        result["open_seconds"] = statistics.median(seconds)
        return result | in_own_process(LIBRARIES, read, row, case, folder, reference, options.quick)
    except Exception as error:  # a row that fails, or is killed for its memory, leaves the others
        return result | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        remove(folder)


def write_reference(case: Case, path: Path) -> None:
    """The training split as one .npy file, which numpy copies for comparison."""
    clips, ids = FeatureClips(case), case.split()
    offsets = clips.offsets(ids)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (int(offsets[-1]), case.dim))
    for i, clip_id in enumerate(ids):
        out[offsets[i] : offsets[i + 1]] = clips[clip_id]
    out.flush()


def write(row: str, case: Case, folder: Path, passes: int) -> dict[str, Any]:
    """Write all clips several times, each time anew; the last one stays."""
    clips = FeatureClips(case)
    written, durable = [], []
    for _ in range(passes):
        remove(folder)
        (folder / "store").mkdir(parents=True)
        os.sync()
        started = time.perf_counter()
        STORES[row].write(folder / "store", clips)
        written.append(time.perf_counter() - started)
        os.sync()
        durable.append(time.perf_counter() - started)
        remove(folder / "scratch")
    files, size = stored(folder / "store")
    medians = {"write_seconds": statistics.median(written), "durable_seconds": statistics.median(durable)}
    return medians | {"megabytes": size / 1e6, "files": files}


def open_once(row: str, folder: Path) -> float:
    """Seconds until a process that has imported the libraries knows the ids and holds one clip."""
    started = time.perf_counter()
    store = STORES[row](folder / "store")
    len(store[store.ids[-1]])
    return time.perf_counter() - started


def read(row: str, case: Case, folder: Path, reference: Path, quick: bool) -> dict[str, Any]:
    """Random clips, and the training split in two orders; what is read is compared with what was written."""
    from cache.containers.file_rows import page_aligned

    store, clips = STORES[row](folder / "store"), FeatureClips(case)
    rng = np.random.default_rng(3)
    split = case.split()
    orders = {"shuffled": [split[i] for i in rng.permutation(len(split))], "stored": split}
    source = np.load(reference, mmap_mode="r")
    out = page_aligned(source.shape, np.dtype(np.float16))  # as emi makes it
    out[:] = 0
    for ids in orders.values():  # the first pass warms what there is to warm
        store.load(ids, out)
        clips.check(ids, out)
    times = [seconds_of(lambda i=i: store[clips.ids[i]]) for i in rng.integers(0, case.clips, RANDOM_CLIPS)]
    result = {"random_clip_ms": 1000 * statistics.median(times)}
    pairs = {
        order: in_pairs(
            numpy_copies(source, clips, split, ids, out), lambda ids=ids: store.load(ids, out), 1 if quick else PAIRS
        )
        for order, ids in orders.items()
    }
    for order, measured in pairs.items():
        result[f"{order}_gb_s"] = out.nbytes / 1e9 / statistics.median(own for _, own in measured)
        result[f"{order}_vs_numpy"] = statistics.median(numpy / own for numpy, own in measured)
    both = [numpy for measured in pairs.values() for numpy, _ in measured]
    result |= {"numpy_gb_s": out.nbytes / 1e9 / statistics.median(both), "pairs": len(both)}
    result["page_offsets"] = [source.ctypes.data % PAGE, out.ctypes.data % PAGE]
    if isinstance(store, EmiZarr):
        result["verify_gb_s"] = verify_rate(store.path, 1 if quick else VERIFY_PASSES)
    return result


def numpy_copies(
    source: np.ndarray, clips: FeatureClips, stored: list[str], wanted: list[str], out: np.ndarray
) -> Callable[[], None]:
    """Copy clips that lie in one order in a memory map into an array in another."""
    offsets, ends = clips.offsets(stored).tolist(), clips.offsets(wanted).tolist()
    place = {clip_id: (offsets[i], offsets[i + 1]) for i, clip_id in enumerate(stored)}
    copies = [(ends[i], ends[i + 1], *place[clip_id]) for i, clip_id in enumerate(wanted)]

    def copy() -> None:
        for start, end, low, high in copies:
            out[start:end] = source[low:high]

    return copy


def verify_rate(path: Path, passes: int) -> float:
    """GB/s of `emi cache verify`."""
    from cache.maintenance.verify import verify

    rates = []
    for _ in range(passes):
        started = time.perf_counter()
        rates.append(verify(path).bytes / 1e9 / (time.perf_counter() - started))
    return statistics.median(rates)


def shared(case: Case, folder: Path) -> dict[str, float]:
    """Open a cache and map the training split; whoever comes first gathers it."""
    from cache import open_cache
    from cache.shared import shared_load

    before = memory_mb("/proc/self/status", "RssAnon")
    started = time.perf_counter()
    with open_cache(folder / "store" / "c.zarr") as store:
        frames = shared_load(store, case.split(), folder / "shared").rows
    elapsed = time.perf_counter() - started
    frames.max()  # every page
    private = memory_mb("/proc/self/status", "RssAnon") - before
    return {"seconds": elapsed, "private_mb": private, "split_mb": frames.nbytes / 1e6}


def print_tables(results: list[dict[str, Any]]) -> None:
    """Markdown, ready for docs/performance.md."""
    print(header_line())
    for case in dict.fromkeys(row["case"] for row in results):
        rows = [row for row in results if row["case"] == case]
        first = rows[0]
        print(
            f"\n{case}: {first['clips']:,} clips of {first['frames'][0]} to {first['frames'][1]} frames (mean "
            f"{first['mean_frames']:.0f}) of {first['dim']} float16, {first['gigabytes']:.2f} GB; training split: "
            f"{first['split_clips']:,} clips\n"
        )
        print(f"| row | {' | '.join(title.strip() for title in COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
        for row in rows:
            if "error" in row:
                print(f"| {row['name']} | failed: {row['error']} |{' |' * (len(COLUMNS) - 1)}")
            elif row["name"] != SHARED:
                shown = [figure(row[key] * factor) if key in row else "" for key, factor in COLUMNS.values()]
                print(f"| {row['name']} | {' | '.join(shown)} |")
        for row in rows:
            if "second_seconds" in row:
                print(
                    f"\nshared_load of the split ({row['first_split_mb']:,.0f} MB), cache opened included: "
                    f"{row['first_seconds']:.2f} s in the first process, {row['second_seconds']:.2f} s in the second, "
                    f"which holds {row['second_private_mb']:.0f} MB of its own after reading all of it"
                )
    print(NOTES)


if __name__ == "__main__":
    main()
