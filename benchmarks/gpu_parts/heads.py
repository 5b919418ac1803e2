"""Heads on features of the size of Hume-Vidmimic2: the paper's for 30 epochs, and hidden 256 on derived features.

The features are made up: one block of noise, of which each clip is a piece, and in each clip every frame is moved by
the clip's targets in six of its numbers. So a head that learns at all finds them.
"""

import time
from typing import Any

import numpy as np
import torch

from benchmarks._feature_clips import EMI
from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.machine import peak_gib
from benchmarks.gpu_parts.material import TARGETS, random_targets
from train_head.data.labels import Labels
from train_head.data.names import UNNAMED
from train_head.data.splits import Split
from train_head.data.streams import Stream
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

EPOCHS, TRAIN, VALID = 30, 8072, 4588
NOISE_ROWS = 65_536
LEARNT = 0.5
"""Mean validation Pearson after the last epoch, from which on a head has learnt something."""


def measure(setup: Setup, tell: Tell) -> None:
    """Tell a row per head; the small one first, which takes seconds."""
    both = (("hidden 256 on derived features", 128, 5, 256), ("the paper's head", 1027, 1, 0))
    for number, (name, dim, pool, hidden) in enumerate(both):
        allowed = setup.seconds_left / (len(both) - number) * (0.5 if not number else 0.85)
        train, valid = splits(min(dim, 32), pool, (48, 24)) if setup.quick else splits(dim, pool, (TRAIN, VALID))
        tell({"name": name} | train_for(setup, train, valid, hidden, allowed))


def train_for(setup: Setup, train: Split, valid: Split, hidden: int, seconds: float) -> dict[str, Any]:
    """Train as many of 30 epochs as fit into the time, validation included."""
    until = time.monotonic() + seconds
    epochs = 3 if setup.quick else EPOCHS
    tiny = {"hidden": 16, "lr": 1e-3, "batch_size": 8, "precision": "fp32"} if setup.quick else {}
    settings = resolve_settings(**{"hidden": hidden, "epochs": epochs, "device": setup.device} | tiny).on_this_machine()
    started = time.perf_counter()
    trainer = Trainer(settings, train, valid, None)
    loaded = time.perf_counter() - started
    records: list[dict[str, Any]] = []
    while len(records) < epochs and (not records or time.monotonic() + 1.2 * records[-1]["seconds"] < until):
        records.append(trainer.run_epoch(len(records) + 1))
    took = [record["seconds"] for record in records]
    pearson = records[-1]["valid_mean_pearson"]
    return {
        "precision": settings.precision,
        "clips": [len(train), len(valid)],
        "dim": train.only.dim,
        "hidden": settings.head_options["hidden"] or train.only.dim,
        "feature_gb": train.only.rows.numel() * train.only.rows.element_size() / 1e9,
        "seconds_to_device": loaded,
        "epochs": len(records),
        "of_epochs": epochs,
        "seconds_per_epoch": sum(took) / len(took),
        "seconds_in_all": sum(took),
        "frames_per_second": max(record["frames_per_second"] for record in records),
        "losses": [records[0]["train_loss"], records[-1]["train_loss"]],
        "valid_mean_pearson": pearson,
        "gpu_peak_gib": peak_gib(torch.device(setup.device)),
        "passed": records[-1]["train_loss"] < records[0]["train_loss"]
        and (setup.quick or len(records) < epochs or (pearson or 0.0) > LEARNT),
    }


def splits(dim: int, pool: int, counts: tuple[int, int]) -> tuple[Split, Split]:
    """Training and validation split on one array of their frames, as a cache gives them.

    Args:
        dim: features per frame.
        pool: frames of 20 ms that were averaged into one.
        counts: clips of each.
    """
    clips = sum(counts)
    rng = np.random.default_rng(0)
    every = EMI.lengths() if clips == EMI.clips else EMI.lengths()[:clips].clip(1, 60)
    lengths = -(-rng.permutation(every) // pool)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = random_targets(clips)
    noise = rng.standard_normal((NOISE_ROWS, dim), np.float32).astype(np.float16)
    frames = np.empty((int(starts[-1]), dim), np.float16)
    for i, begin in enumerate(rng.integers(0, NOISE_ROWS - int(lengths.max()), clips)):
        rows = frames[starts[i] : starts[i + 1]]
        rows[:] = noise[begin : begin + len(rows)]
        rows[:, : len(TARGETS)] += (values[i] - 0.5).astype(np.float16)
    shared = torch.from_numpy(frames)
    ids = [f"{i:05d}" for i in range(clips)]
    found = []
    for at in (slice(0, counts[0]), slice(counts[0], clips)):
        table = Labels("synthetic", tuple(ids[at]), tuple(ids[at]), TARGETS, values[at])
        rows_at = (torch.from_numpy(array[at].copy()) for array in (starts[:-1], lengths))
        found.append(Split(table, {UNNAMED: Stream(UNNAMED, shared, *rows_at)}, torch.from_numpy(values[at])))
    return found[0], found[1]
