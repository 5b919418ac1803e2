"""Steps of fine-tuning at the paper's shape: 32 clips of 12 s, with and without checkpointing; seconds and memory."""

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._peers import flops_per_second
from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.machine import layer_shape, matrix_tflops, peak_gib, synchronise
from benchmarks.gpu_parts.material import audeering, labels, random_targets, voices
from cache.system.memory import is_out_of_memory
from emi.finetuning.media import DecodedMedia, gather_media
from emi.finetuning.processes import Processes
from emi.finetuning.settings import resolve
from extract.backbones import identify
from train_head.runs.inputs import LabelFiles

CLIPS, SECONDS, STEPS = 32, 12.0, 4
WAYS: dict[str, dict[str, Any]] = {
    "unfrozen": {},
    "unfrozen, whole batch at once": {"batch_seconds": CLIPS * SECONDS},
    "unfrozen, checkpointing": {"checkpointing": True},
    "unfrozen, checkpointing, whole batch at once": {"checkpointing": True, "batch_seconds": CLIPS * SECONDS},
    "convolutions frozen": {"freeze": "cnn"},
}
"""The first as `emi finetune --freeze none` does it; the last is its default."""


def measure(setup: Setup, tell: Tell) -> None:
    """Tell a row per way; one that finds no memory leaves the others."""
    checkpoint = audeering(setup)
    clips, seconds = (4, 0.5) if setup.quick else (CLIPS, SECONDS)
    folder = voices(setup.folder / "clips", [seconds] * clips)
    table = labels(setup.folder / "labels.csv", [str(i) for i in range(clips)], random_targets(clips))
    device = torch.device(setup.device)
    limit, flops = matrix_tflops(device, setup.precision, layer_shape(setup)), flops_per_second(str(checkpoint))
    for name, settings in WAYS.items():
        gc.collect()  # the trainer before holds itself
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = {"name": f"{name}, {setup.precision}", "clips": clips, "seconds_each": seconds}
        try:
            times, losses = steps(setup, checkpoint, folder, table, {"freeze": "none", **settings})
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tell(row | {"error": f"no memory: {error}".splitlines()[0]})
            continue
        step = statistics.median(times[1:])
        used = (
            3 * flops * clips * seconds / step / 1e12
        )  # forth once, back twice; what is computed again does not count
        tell(
            row
            | {
                "seconds_per_step": step,
                "clips_per_second": clips / step,
                "tflops": used,
                "share_of_matrix_rate": used / limit,
                "gpu_peak_gib": peak_gib(device),
                "losses": losses,
                "passed": losses[-1] < losses[0],
            }
        )


def steps(
    setup: Setup, checkpoint: Path, clips: Path, table: Path, settings: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Seconds and losses of the trainer's own steps; an epoch is one."""
    run_folder = setup.folder / f"run-{len(list(setup.folder.iterdir()))}"
    run_folder.mkdir()
    identity = identify(str(checkpoint))
    training, tuning = resolve(
        batch_size=CLIPS, device=setup.device, precision=setup.precision, save_minutes=1e5, warmup_epochs=0.0,
        lr=1e-3, **settings,
    )  # fmt: skip
    training = training.on_this_machine()
    source = DecodedMedia(
        root=clips,
        identity=identity,
        tuning=tuning,
        precision=training.precision,
        processes=Processes(training.device),
    )
    inputs = gather_media(source, LabelFiles.named(table), setup.folder / "audio")
    trainer = inputs.source.make_loop(training, inputs.splits["train"], None, run_folder)
    trainer.restore()
    times, losses = [], []
    for number in range(1, 1 + (2 if setup.quick else STEPS)):
        started = time.perf_counter()
        record = trainer.run_epoch(number)
        synchronise(torch.device(setup.device))
        times.append(time.perf_counter() - started)
        losses.append(record["train_loss"])
    return times, losses
