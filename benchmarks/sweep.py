"""The time of a sweep beside a plain Optuna study around a plain loop, on the same data, in one run:

    python benchmarks/sweep.py [--quick] [--trials N] [--plain-trials N] [--json FILE]

A cache of the size of Hume-Vidmimic2 (8,072 + 4,588 clips of noise with its lengths, 1027 features) is written. (a) is
what users write: `study.optimize` in one process, each trial a DataLoader over padded clips and `nn.LSTM`, all epochs,
on all features. (b) is `emi sweep` over the same space, which tries cheaply first: on a derived cache of means over 10
frames and 128 principal components, 1,000 of the training clips, with its pruner and one process per core.
(a) takes hours, so a few batches of each of its epochs are timed and multiplied; (b) is run whole, the making of the
derived cache included. Both draw the same settings with the same sampler and seed for as long as nothing is pruned.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import optuna
import torch
from optuna.samplers import RandomSampler
from torch import nn
from torch.utils.data import DataLoader

from benchmarks._feature_clips import EMI, Case, FeatureClips
from benchmarks._machine import header_line
from benchmarks._plain_head import Clips, PlainHead, collate
from benchmarks._timing import figure
from cache import CacheWriter, Clip, Header
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.sweep.settings import SweepSettings
from train_head.sweep.space import Space, read_space
from train_head.sweep.sweep import sweep
from train_head.sweep.trials import Status

TARGETS = ("Admiration", "Amusement", "Determination", "Empathic Pain", "Excitement", "Joy")
SPACE = """
head = "lstm"
lr = { log = [1e-5, 1e-2] }
weight_decay = { log = [1e-4, 1e-1] }
loss = ["mse"]
epochs = 20
[lstm]
hidden = [64, 128, 256]
"""
BATCHES = 3
"""Of each plain trial that are timed, after one that warms up."""


def main() -> None:
    """Write the cache, run both, print."""
    options = parse()
    case = replace(EMI, dim=1027)
    if options.quick:
        case = Case(name="quick", clips=60, train=40, dim=16, frames=(40, 10, 1, 60))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(case, folder)
        (folder / "space.toml").write_text(SPACE.replace("20", "2") if options.quick else SPACE)
        space = read_space(folder / "space.toml")
        rows = [own_sweep(folder, space, options), plain_study(folder, space, options)]
    ratio = rows[0]["trials_per_hour"] / rows[1]["trials_per_hour"]
    rows.append({"name": "emi sweep, times the trials per hour of the plain study", "ratio": ratio})
    print(f"{header_line()}; torch {torch.__version__}\n")
    print("| row | trials | s | trials per hour |\n|---|---|---|---|")
    for row in rows[:2]:
        numbers = (row["trials"], row["seconds"], row["trials_per_hour"])
        print(f"| {row['name']} | {' | '.join(figure(number) for number in numbers)} |")
    print(f"\nratio: {figure(ratio)}; pruned {rows[0]['pruned']} of {rows[0]['trials']}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny cache and few trials: does it run at all?")
    parser.add_argument("--trials", type=int, help="of emi [default: 64]")
    parser.add_argument("--plain-trials", type=int, help="of the plain study, a few batches each [default: 6]")
    parser.add_argument("--jobs", type=int, help="worker processes of emi [default: one per core]")
    parser.add_argument("--folder", help="where the 9 GB cache lies for a while")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    options.trials = options.trials or (4 if options.quick else 64)
    options.plain_trials = options.plain_trials or (1 if options.quick else 6)
    return options


def write(case: Case, folder: Path) -> None:
    """A cache, and labels that follow from its features in part, so that trials differ."""
    clips = FeatureClips(case)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(case.dim, len(TARGETS)))
    training = set(case.split())
    lines: dict[str, list[str]] = {"train": [], "valid": []}
    with CacheWriter(
        folder / "features.zarr", Header(fingerprint={"backbone": "synthetic", "dtype": "float16"}, dim=case.dim)
    ) as writer:
        for clip_id, frames in clips:
            writer.add(Clip(clip_id, frames, None, None, len(frames) * 0.02))
            signal = 30 * frames.astype(np.float32).mean(0) @ weights / np.sqrt(case.dim) + rng.normal(
                size=len(TARGETS)
            )
            values = ",".join(f"{value:.4f}" for value in 1 / (1 + np.exp(-signal)))
            lines["train" if clip_id in training else "valid"].append(f"{clip_id},{values}")
    for name, split in lines.items():
        (folder / f"{name}.csv").write_text("\n".join([",".join(("Filename", *TARGETS)), *split]) + "\n")


def own_sweep(folder: Path, space: Space, options: argparse.Namespace) -> dict[str, Any]:
    """The whole of `emi sweep`, without the second training of the best."""
    how = SweepSettings(
        trials=options.trials,
        jobs=options.jobs,
        sampler="random",
        pool=10,
        pca=8 if options.quick else 128,
        clips=None if options.quick else 1000,
        top=0,
    )

    def show(status: Status) -> None:
        if status.last is not None:
            print(
                f"emi sweep: {status.finished} of {status.total}, {status.per_minute:.1f}/min",
                file=sys.stderr,
                flush=True,
            )

    started = time.perf_counter()
    result = sweep(
        *(folder / n for n in ("features.zarr", "train.csv", "valid.csv", "run")), space, how, on_status=show
    )
    seconds = time.perf_counter() - started
    status = result.status
    return {
        "name": "(b) emi sweep: 10 frames pooled, 128 components, 1,000 training clips, asha, one process per core",
        "trials": status.finished,
        "pruned": status.pruned,
        "seconds": seconds,
        "trials_per_hour": 3600 * status.finished / seconds,
    }


def plain_study(folder: Path, space: Space, options: argparse.Namespace) -> dict[str, Any]:
    """A few batches of each trial of a plain study, and what all its epochs would take; validation is left out."""
    train = gather_inputs(folder / "features.zarr", LabelFiles.named(folder / "train.csv")).splits["train"]
    spent: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        settings = space.settings(space.suggest(trial))
        head = PlainHead(train.dim, settings.head_options["hidden"], len(TARGETS), packed=False)
        optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        loader = DataLoader(Clips(train), batch_size=settings.batch_size, shuffle=True, collate_fn=collate)
        times = []
        started = time.perf_counter()
        for number, (frames, lengths, targets) in enumerate(loader):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(head(frames, lengths), targets)
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
            started = time.perf_counter()
            if number == BATCHES:
                break
        spent.append(statistics.mean(times[1:] or times) * len(loader) * settings.epochs)
        print(f"plain trial {trial.number}: {spent[-1]:.0f} s for all its batches", file=sys.stderr, flush=True)
        return float(loss.detach())

    optuna.create_study(sampler=RandomSampler(seed=0)).optimize(objective, n_trials=options.plain_trials)
    seconds = statistics.mean(spent) * options.trials
    return {
        "name": "(a) plain Optuna study, DataLoader, padded nn.LSTM (calculated)",
        "trials": options.trials,
        "seconds": seconds,
        "trials_per_hour": 3600 * options.trials / seconds,
    }


if __name__ == "__main__":
    main()
