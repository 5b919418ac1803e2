"""Fine-tuning beside a plain loop, with and without activation checkpointing, in one run:

    python benchmarks/finetune.py [--quick] [--freeze none] [--clips N] [--processes N] [--json FILE]

A checkpoint of audEERING's shape with random weights (12 layers, 1024 numbers, regression head) is made, and clips of
12 s of noise. (a) is the loop as users write it and as the paper's code does: transformers' model, one clip at a time,
`nn.LSTM` on its frames, gradients added up over a batch, `AdamW`; where emi computes in bfloat16, it is measured under
`torch.autocast` as well. (b) is `emi finetune`, (c) the same with --checkpointing, (d) with --processes. Each runs in
processes of its own, whose peak memory is that of weights, gradients, optimizer and activations together (of (d) on a
CPU the sum over them); seconds are the median over steps after the first, optimizer included. All see the same clips in
each step: what frozen layers give, emi computes in the first and keeps, as a run does after its first epoch. All start
from the same weights, freeze the same parts, keep the checkpoint's dropout, and do without SpecAugment and layerdrop.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])

import emi  # before torch: it sets how OpenMP's threads wait
from benchmarks._machine import header_line
from benchmarks._material import make_checkpoint, make_clips
from benchmarks._timing import figure
from cache.system.machine import bfloat16_unit

assert emi.__all__
SECONDS = 12.0
TARGETS = 6


def main() -> None:
    """Make checkpoint and clips, run each way, print."""
    options = parse()
    if options.way:
        print(json.dumps(WAYS[options.way](Path(options.folder), options)))
        return
    import torch

    seconds = 1.0 if options.quick else SECONDS
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint", options.quick)
        make_clips(folder / "clips", options.clips, seconds, 0.0)
        write_labels(folder, options.clips)
        rows = [measure(way, folder, options) for way in WAYS]
        plain, ours, checkpointed, shared = rows
        plains = {"fp32": plain}
        if ours["precision"] == "bf16" and (torch.cuda.is_available() or bfloat16_unit()):
            options.plain_precision = "bf16"
            plains["bf16"] = measure("plain", folder, options)
    rows = [*plains.values(), ours, checkpointed, shared]
    ratios = {"name": f"freeze {options.freeze}: ratios"} | {
        f"clips_per_second, ({letter}) to (a) in {precision}": row["clips_per_second"] / other["clips_per_second"]
        for precision, other in plains.items()
        for letter, row in (("b", ours), ("d", shared))
    }
    ratios |= {
        "peak memory, (c) to (b)": checkpointed["peak_gib"] / ours["peak_gib"],
        "seconds per step, (c) to (b)": checkpointed["seconds_per_step"] / ours["seconds_per_step"],
        "peak memory, (d) to (b)": shared["peak_gib"] / ours["peak_gib"],
    }
    print(f"{header_line()}; torch {torch.__version__}; {options.clips} clips of {seconds:g} s per step\n")
    print("| row | s per step | clips/s | peak GiB |\n|---|---|---|---|")
    for row in rows:
        cells = (row["seconds_per_step"], row["clips_per_second"], row["peak_gib"])
        print(f"| {row['name']} | {' | '.join(map(figure, cells))} |")
    print("\n" + "; ".join(f"{key}: {figure(value)}" for key, value in ratios.items() if key != "name"))
    if options.json:
        Path(options.json).write_text(json.dumps([*rows, ratios], indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny checkpoint and short clips: does it run at all?")
    parser.add_argument("--freeze", default="none", help="as of emi finetune [default: none]")
    parser.add_argument("--clips", type=int, default=8, help="per step [default: 8]")
    parser.add_argument(
        "--batch-seconds", type=float, default=48.0, help="audio at once in a process of emi's [default: 48]"
    )
    parser.add_argument("--processes", type=int, default=2, help="of (d) [default: 2]")
    parser.add_argument("--steps", type=int, help="[default: 4]")
    parser.add_argument("--precision", default="auto", help="of emi's [default: auto]")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--folder", help="where the checkpoint lies for a while")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plain-precision", default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (2 if options.quick else 4)
    return options


def write_labels(folder: Path, clips: int) -> None:
    """Random values for each clip."""
    rng = np.random.default_rng(0)
    lines = [",".join(["Filename", *(f"t{i}" for i in range(TARGETS))])]
    lines += [",".join([str(i), *(f"{value:.3f}" for value in rng.uniform(size=TARGETS))]) for i in range(clips)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def measure(way: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one way in a process of its own."""
    names = ("freeze", "clips", "batch_seconds", "processes", "steps", "precision", "plain_precision", "device")
    passed = [part for name in names for part in (f"--{name.replace('_', '-')}", getattr(options, name))]
    command = [sys.executable, __file__, "--way", way, "--folder", folder, *passed]
    print(f"{way} …", file=sys.stderr, flush=True)
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = statistics.median(found["seconds"][1:])
    return {
        "name": f"{NAMES[way]}, freeze {options.freeze}, {found['precision']}",
        "precision": found["precision"],
        "seconds_per_step": seconds,
        "clips_per_second": options.clips / seconds,
        "peak_gib": found["peak"] / 2**30,
        "each_step": found["seconds"],
    }


def plain(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """(a)."""
    import torch
    from torch import nn
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    from extract.audio.media import decode
    from train_head.data.labels import read_labels

    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    labels = read_labels(folder / "labels.csv")
    extractor = Wav2Vec2FeatureExtractor()
    backbone = AutoModel.from_pretrained(folder / "checkpoint", layerdrop=0.0, apply_spec_augment=False)
    backbone = backbone.to(device).train()
    if options.freeze != "none":
        backbone.freeze_feature_encoder()
    if options.freeze.startswith("layers:"):
        first = int(options.freeze.removeprefix("layers:"))
        for part in (backbone.feature_projection, backbone.encoder.pos_conv_embed, *backbone.encoder.layers[:first]):
            part.requires_grad_(False)
    size = backbone.config.hidden_size
    lstm, out = nn.LSTM(size, size, 2, batch_first=True).to(device), nn.Linear(2 * size, TARGETS).to(device)
    learned = [p for part in (backbone, lstm, out) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5)
    clips = [decode(folder / "clips" / f"{name}.wav").samples for name in labels.ids]
    values = torch.from_numpy(labels.values).to(device)

    def step() -> None:
        optimizer.zero_grad()
        for samples, target in zip(clips, values, strict=True):
            inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.plain_precision == "bf16"):
                frames = backbone(inputs).last_hidden_state
                states, _ = lstm(frames)
                predicted = out(torch.cat([frames.mean(1), states[:, -1]], dim=1))
            (nn.functional.mse_loss(predicted[0].float(), target) / len(clips)).backward()
        optimizer.step()

    return timed(step, options.steps, device) | {"precision": options.plain_precision}


def ours(folder: Path, options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """(b): the trainer's own steps, on what `emi finetune` gives it."""
    from benchmarks import finetune  # a function of __main__ is another one in a helper
    from emi.finetuning.local_processes import local_processes
    from emi.finetuning.settings import resolve
    from emi.finetuning.start import on_this_machine
    from extract.backbones import identify

    settings, tuning = resolve(
        None,
        freeze=options.freeze,
        batch_seconds=options.batch_seconds,
        precision=options.precision,
        device=options.device,
        batch_size=options.clips,
        save_minutes=1e5,
        **more,
    )
    settings = on_this_machine(settings, identify(str(folder / "checkpoint")))
    run_folder = folder / options.way
    run_folder.mkdir()
    work = functools.partial(finetune.take_steps, folder, run_folder, options.steps, settings, tuning)
    with local_processes(tuning.processes, settings.device, work):
        found = work()
    if tuning.processes > 1 and settings.device == "cpu":
        found["peak"] += (tuning.processes - 1) * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return found | {"precision": settings.precision}


def take_steps(folder: Path, run_folder: Path, steps: int, settings: Any, tuning: Any) -> dict[str, Any]:
    """What each process of emi's does."""
    import torch

    from emi.finetuning.media import DecodedMedia, gather_media
    from emi.finetuning.processes import Processes
    from emi.finetuning.start import spare_time_or_memory
    from extract.backbones import identify
    from train_head.runs.inputs import LabelFiles

    if settings.device == "cpu":
        spare_time_or_memory(tuning)
    source = DecodedMedia(
        root=folder / "clips",
        identity=identify(str(folder / "checkpoint")),
        tuning=tuning,
        precision=settings.precision,
        processes=Processes(settings.device),
    )
    inputs = gather_media(source, LabelFiles.named(folder / "labels.csv"), folder / "audio")
    trainer = inputs.source.make_loop(settings, inputs.splits["train"], None, run_folder)
    trainer.restore()  # nothing to restore; from here on it keeps what frozen layers gave
    number = iter(range(1, 1 + steps))

    def step() -> None:
        trainer.run_epoch(next(number))  # one step: the batch holds all clips

    return timed(step, steps, torch.device(settings.device))


def checkpointed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """(c)."""
    return ours(folder, options, checkpointing=True)


def shared(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """(d)."""
    return ours(folder, options, processes=options.processes)


def timed(step: Any, steps: int, device: Any) -> dict[str, Any]:
    """Seconds of each step, and the peak of the memory: the device's, or this process's own."""
    import torch

    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else peak}


WAYS = {"plain": plain, "emi": ours, "checkpointed": checkpointed, "shared": shared}
NAMES = {
    "plain": "(a) plain loop, one clip at a time",
    "emi": "(b) emi finetune",
    "checkpointed": "(c) emi finetune --checkpointing",
    "shared": "(d) emi finetune --processes",
}

if __name__ == "__main__":
    main()
