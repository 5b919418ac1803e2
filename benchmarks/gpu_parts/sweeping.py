"""A sweep of 16 trials on derived features of the size of Hume-Vidmimic2, in processes that share the device."""

import time
from pathlib import Path

from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.heads import TRAIN, VALID, splits
from benchmarks.gpu_parts.material import labels
from cache import CacheWriter, Clip, Header
from train_head.runs.inputs import LabelFiles
from train_head.sweep.settings import SweepSettings
from train_head.sweep.space import read_space
from train_head.sweep.sweep import sweep

TRIALS, JOBS = 16, 4
SPACE = """
head = "lstm"
lr = {{ log = [1e-4, 1e-2] }}
epochs = {epochs}
[lstm]
hidden = [{hidden}]
"""


def measure(setup: Setup, tell: Tell) -> None:
    """Write the cache, run the trials."""
    started = time.perf_counter()
    write(setup.folder, (32, 16) if setup.quick else (TRAIN, VALID))
    tell({"name": "cache written", "seconds": time.perf_counter() - started})
    values = {"epochs": 1, "hidden": "8"} if setup.quick else {"epochs": 10, "hidden": "64, 128, 256"}
    (setup.folder / "space.toml").write_text(SPACE.format(**values))
    trials, jobs = (2, 1) if setup.quick else (TRIALS, JOBS)
    started = time.perf_counter()
    result = sweep(
        setup.folder / "features.zarr",
        LabelFiles.named(setup.folder / "train.csv", setup.folder / "valid.csv"),
        setup.folder / "run",
        read_space(setup.folder / "space.toml", device=setup.device),
        SweepSettings(trials=trials, jobs=jobs, sampler="random", top=0),
    )
    elapsed, status = time.perf_counter() - started, result.status
    tell(
        {
            "name": f"sweep, {jobs} processes on one device",
            "trials": status.finished,
            "pruned": status.pruned,
            "seconds": elapsed,
            "trials_per_hour": 3600 * status.finished / elapsed,
            "best": status.best,
            "passed": status.finished == trials and not status.failed,
        }
    )


def write(folder: Path, counts: tuple[int, int]) -> None:
    """Features of 128 numbers, means of five frames, and their labels."""
    parts = dict(zip(("train", "valid"), splits(128, 5, counts), strict=True))
    with CacheWriter(folder / "features.zarr", Header(fingerprint={"dtype": "float16"}, dim=128)) as writer:
        for name, split in parts.items():
            labels(folder / f"{name}.csv", split.labels.ids, split.labels.values)
            for clip, frames in zip(split.labels.ids, split.only.chunks(), strict=True):
                writer.add(Clip(clip, frames.numpy(), None, None, 0.1 * len(frames)))
