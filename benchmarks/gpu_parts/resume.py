"""Killed in the middle and started again, beside two that were left alone: extraction, a head, fine-tuning.

On a CPU the resumed one equals the others to the byte. A GPU's kernels may add numbers up in another order each time (a
gradient by atomic additions, for one). There the two that were left alone say by how much results differ without any
kill, and the resumed one may be `MARGIN` times as far from the first.
"""

import functools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.material import audeering, labels, make_both, random_targets, small, speech_lengths, voices

MARGIN = 4.0
PARTS = ("frames", "vad", "vad_pooled")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is killed.

    Attributes:
        name: for the row.
        run: does it, in a process of its own: `run(setup, inputs, out, kill_at)` kills itself there, if not negative.
        read: arrays of what it leaves.
        kill_at: clips written, epochs begun or steps begun.
    """

    name: str
    run: Callable[[Setup, Path, Path, int], None]
    read: Callable[[Path], Arrays]
    kill_at: int


def measure(setup: Setup, tell: Tell) -> None:
    """Run all that need not wait for another at once."""
    inputs = setup.folder / "inputs"
    count = 12 if setup.quick else 96
    seconds = [0.3 + 0.05 * i for i in range(count)] if setup.quick else speech_lengths(count).tolist()
    voices(inputs / "clips", seconds)
    for name, part in (("train", range(count * 2 // 3)), ("valid", range(count * 2 // 3, count))):
        labels(inputs / f"{name}.csv", [str(i) for i in part], random_targets(len(part)))
    setup.in_child(make_both, setup)
    works = (
        Work(name="extraction", run=run_extraction, read=read_cache, kill_at=count // 2),
        Work(name="training a head", run=run_training, read=read_run, kill_at=2),
        Work(name="fine-tuning", run=run_finetuning, read=read_run, kill_at=3),
    )
    begun = [(work, out, -1) for work in works for out in ("one", "two")]
    codes = in_processes(setup, inputs, [*begun, *((work, "killed", work.kill_at) for work in works)])
    again = in_processes(setup, inputs, [(work, "killed", -1) for work in works])
    for work in works:
        ended = {out: codes[work.name, out] for out in ("one", "two", "killed")}
        tell({"name": work.name} | compare(setup, work, ended | {"resumed": again[work.name, "killed"]}))


def in_processes(setup: Setup, inputs: Path, runs: list[tuple[Work, str, int]]) -> dict[tuple[str, str], int | None]:
    """Exit codes of all, run at once."""
    processes = {}
    for work, out, kill_at in runs:
        process = setup.child(work.run, setup, inputs, place(setup, work, out), kill_at)
        process.start()
        processes[work.name, out] = process
    for process in processes.values():
        process.join(setup.seconds_left)
    return {key: process.exitcode for key, process in processes.items()}


def place(setup: Setup, work: Work, out: str) -> Path:
    """Where a run lies."""
    return setup.folder / f"{work.name.replace(' ', '-')}-{out}"


def compare(setup: Setup, work: Work, codes: dict[str, int | None]) -> dict[str, Any]:
    """How far the resumed run is from the first, and the second from it."""
    row: dict[str, Any] = {"exit_codes": codes}
    if codes != {"one": 0, "two": 0, "killed": -signal.SIGKILL, "resumed": 0}:
        return row | {"passed": False, "error": "a run did not end as it should have"}
    one, two, killed = (work.read(place(setup, work, out)) for out in ("one", "two", "killed"))
    apart, resumed = difference(one, two), difference(one, killed)
    return row | {
        "arrays": len(one),
        "two_runs_differ_by": apart,
        "resumed_differs_by": resumed,
        "same_bytes": resumed == 0.0,
        "passed": resumed <= MARGIN * apart,
    }


def difference(one: Arrays, other: Arrays) -> float:
    """Largest over all arrays, as a share of the largest number in each; infinite where something is missing."""
    if {name: a.shape for name, a in one.items()} != {name: a.shape for name, a in other.items()}:
        return float("inf")
    found = 0.0
    for name, a in one.items():
        b = other[name]
        if a.tobytes() != b.tobytes():
            largest = max(float(np.abs(a).max()), 1e-12)
            found = max(found, float(np.abs(a.astype(np.float64) - b).max()) / largest, 2.0**-52)
    return found


def run_extraction(setup: Setup, inputs: Path, out: Path, kill_at: int) -> None:
    """`emi.extract`, each clip committed by itself."""
    import emi
    from extract import clips

    class Writer(clips.CacheWriter):
        def add(self, *arguments: Any) -> None:
            if len(self.done) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            super().add(*arguments)

    clips.CacheWriter = functools.partial(Writer, segment_seconds=0.0)  # type: ignore[misc, assignment]
    emi.extract(
        inputs / "clips",
        out.with_suffix(".zarr"),
        backbone=str(audeering(setup)),
        device=setup.device,
        processes=1,
        batch_seconds=120.0,  # others run beside it
    )


def run_training(setup: Setup, inputs: Path, out: Path, kill_at: int) -> None:
    """`emi.train_head` with dropout and a moving average, on silero's features."""
    import emi
    from train_head.training.trainer import Trainer

    cache = out.with_suffix(".zarr")
    emi.extract(inputs / "clips", cache, device="cpu", processes=1)
    without_pictures()
    _die_in(Trainer, "run_epoch", kill_at)
    emi.train_head(
        cache,
        inputs / "train.csv",
        inputs / "valid.csv",
        out,
        device=setup.device,
        hidden=32,
        epochs=4,
        dropout=0.3,
        ema=0.9,
        noise=0.1,
        lr=1e-3,
        batch_size=8,
    )


def run_finetuning(setup: Setup, inputs: Path, out: Path, kill_at: int) -> None:
    """`emi.finetune` with dropout, in pieces that are computed twice."""
    import emi
    from emi.finetuning.trainer import FinetuneTrainer

    without_pictures()
    _die_in(FinetuneTrainer, "_step", kill_at)
    emi.finetune(
        inputs / "clips",
        inputs / "train.csv",
        inputs / "valid.csv",
        out,
        backbone=str(small(setup)),
        device=setup.device,
        precision=setup.precision,
        hidden=16,
        epochs=2,
        dropout=0.3,
        loss="0.5*ccc + 0.5*mse",
        batch_size=max(2, 4 if setup.quick else 32),
        batch_seconds=2.0 if setup.quick else 60.0,
        save_minutes=0.0,
    )


def without_pictures() -> None:
    """Draw nothing at the end of a run in this process: that takes longer than a small run, and no GPU."""
    from train_head.reports import figures

    figures.draw_run = lambda *_: None  # type: ignore[assignment]


def _die_in(owner: Any, name: str, call: int) -> None:
    """Kill this process at the beginning of a call, counted from 0; at none if negative."""
    original, calls = getattr(owner, name), iter(range(1 << 30))

    @functools.wraps(original)
    def dies(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    setattr(owner, name, dies)


def read_cache(out: Path) -> Arrays:
    """What a cache holds of each clip."""
    from cache import open_cache

    with open_cache(out.with_suffix(".zarr")) as store:
        clips = {name: store[name] for name in store.ids}
    arrays = {f"{name} {part}": getattr(clip, part) for name, clip in clips.items() for part in PARTS}
    return {name: array for name, array in arrays.items() if array is not None}


def read_run(out: Path) -> Arrays:
    """Weights, predictions and losses of a run."""
    from safetensors.numpy import load_file

    from train_head.data.labels import read_labels

    found = {
        f"{path.name} {name}": array
        for path in sorted(out.glob("*.safetensors"))
        for name, array in load_file(path).items()
    }
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["losses"] = np.array([record["train_loss"] for record in history])
    return found | {"predictions": read_labels(out / "predictions_valid.csv", check_range=False).values}
