"""Everything that only a GPU can show, in one command that ends within eight minutes on an H100 or H200:

    python benchmarks/on_gpu.py [--device cpu --quick] [--only PART …] [--json FILE]

Parts (`benchmarks/gpu_parts`): parity of every backbone with the CPU, kill and resume, extraction, the backbones for
labels per frame, fine-tuning, heads, training on labels per frame, a sweep, two processes on one device. Each runs in
a process of its own under a time limit of its own, so that one that crashes, hangs or runs out of memory costs itself
alone; what they tell is in the file after each. The last line says what passed; the exit code is 0 if all did.
docs/gpu.md says what the rows mean.

To add a part, write a file beside the others with a function `measure(setup, tell)` and add a line to `PARTS`. It tells
a row for each thing it measures; a row with "passed" false, or an exception, fails the part and no other.
"""

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # this file's folder holds one named like a package

os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # of models made at random

import emi  # before torch: it sets how OpenMP's threads wait
from benchmarks._timing import figure
from benchmarks.gpu_parts.harness import In, Part, Row, Setup, run_parts, write_atomically

assert emi.__all__
PARTS = (
    Part(name="machine", measure=In("machine"), seconds=45),
    Part(name="parity", measure=In("parity"), seconds=110),
    Part(name="resume", measure=In("resume"), seconds=90),
    Part(name="extraction", measure=In("extraction"), seconds=90),
    Part(name="frames", measure=In("frame_backbones"), seconds=40),
    Part(name="finetuning", measure=In("finetuning"), seconds=70),
    Part(name="heads", measure=In("heads"), seconds=80),
    Part(name="va training", measure=In("va_training"), seconds=60),
    Part(name="sweep", measure=In("sweeping"), seconds=70),
    Part(name="one device", measure=In("one_device"), seconds=75),
)
"""Their time limits may add up to more than the whole has: each gets what the ones before it have left."""

SECONDS = 470.0
"""For all parts together, so that the command ends within eight minutes."""


def main() -> None:
    """Run the parts and print what they told."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that parts and files go too
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="emi-on-gpu-", ignore_cleanup_errors=True) as name:
        (Path(name) / "shared").mkdir()
        setup = Setup(device=options.device, quick=options.quick, folder=Path(name), start=options.start)
        parts = [replace(part, seconds=part.seconds * options.patience) for part in parts]
        seconds = SECONDS * options.patience
        records = run_parts(parts, setup, seconds, lambda records: write_atomically(options.json, records))
    for record in records:
        print(f"\n{record['name']}: {record['status']} after {figure(record['seconds'])} s {record.get('error', '')}")
        for row in record["rows"]:
            print("  " + shown(row))
    failed = [record["name"] for record in records if record["status"] != "passed"]
    verdict = f"not passed: {', '.join(failed)}" if failed else "all passed"
    print(f"\n{len(records) - len(failed)} of {len(records)} parts passed; {verdict}; {options.json}")
    sys.exit(bool(failed))


def parse() -> argparse.Namespace:
    """Command line."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models and few clips: does it run at all?")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--patience", type=float, default=1.0, help="times all time limits, for a slow machine")
    parser.add_argument("--start", choices=("fork", "spawn"), default="fork", help="of processes [default: fork]")
    parser.add_argument("--folder", help="where files lie for a while, 15 GB of them [default: the system's]")
    parser.add_argument(
        "--json", type=Path, default=Path("gpu.json"), help="written after each part [default: gpu.json]"
    )
    return parser.parse_args()


def shown(row: Row) -> str:
    """A row in a line."""
    verdict = {True: "ok: ", False: "NOT PASSED: ", None: ""}[row.get("passed")]
    others = (f"{key} {value_of(value)}" for key, value in row.items() if key not in ("name", "passed"))
    return f"{verdict}{row['name']}: {', '.join(others)}"


def value_of(value: Any) -> str:
    """Three digits of a number, whatever its size; lists and tables of them too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_of, value)) + "]"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and not 10 <= abs(value) < 1e6
        else figure(value)
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    main()
