"""Training of configs/va.toml beside the loop that users write, on a synthetic Aff-Wild2, in one run:

    python benchmarks/train_frames.py [--quick] [--device cuda] [--json FILE]

356 clips with 1.9 million frames, 512 numbers per face and 128 of the sound (noise, float16), labels of which a tenth
is not annotated. The loop is a DataLoader of padded windows and the same network in plain torch. Each row has a
process of its own, reads the same caches, and takes turns with the others: some batches of 32 windows each. Rows per
second count label rows of windows; the figure is the median of the turns, the ratio that of turns that follow each
other. Memory is in units of the features as they are stored (2.4 GB): what a process holds once they are loaded, and at
most while training, beyond what it held after a first batch of one window of 30 rows, with all libraries loaded.
"""

import argparse
import ctypes
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from benchmarks._machine import header_line, memory_mb, peak_mb
from benchmarks._plain_va import PlainNetwork, Windows, ccc_loss, collate
from benchmarks._timing import figure
from benchmarks.train_head import in_process
from cache import CacheWriter, Clip, Header, open_cache
from train_head.data.frame_labels import read_frame_labels
from train_head.data.label_format import LabelFormat
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "va.toml"
DIMS = {"visual": 512, "audio": 128}
FPS = 25.0
OVERLAPPING = 300 / 200
"""Label rows of windows per label row: those of the configuration are 300 rows long and begin every 200."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """How much is trained on.

    Attributes:
        clips: how many.
        rows: frames of a clip on average.
        batches: of 32 windows in one turn.
        turns: of each row; one more before these does not count.
    """

    clips: int = 356
    rows: int = 5056
    batches: int = 8
    turns: int = 5

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(clips,) frames of each."""
        return (self.rows * np.random.default_rng(0).uniform(0.2, 1.8, self.clips)).astype(np.int64)

    def write(self, folder: Path) -> None:
        """Write a cache per stream and the labels."""
        rng, lengths = np.random.default_rng(1), self.lengths
        for name, dim in DIMS.items():
            noise = rng.standard_normal((4 * self.rows, dim), np.float32).astype(np.float16)
            header = Header(fingerprint={"backbone": name, "dtype": "float16"}, dim=dim, hop_seconds=1 / FPS)
            with CacheWriter(folder / f"{name}.zarr", header) as writer:
                for i, length in enumerate(lengths):
                    writer.add(Clip(f"{i:03d}", noise[(at := 13 * i) : at + length], None, None, length / FPS))
        (folder / "labels").mkdir()
        for i, length in enumerate(lengths):
            values = rng.uniform(-1, 1, (length, 2))
            values[rng.random(length) < 0.1] = -5
            text = "\n".join(f"{v:.3f},{a:.3f}" for v, a in values)
            (folder / "labels" / f"{i:03d}.txt").write_text(f"valence,arousal\n{text}\n")

    @property
    def stored_mb(self) -> float:
        """Size of the features as they are stored."""
        return float(self.lengths.sum()) * 2 * sum(DIMS.values()) / 2**20


def held_mb() -> float:
    """Memory of this process now."""
    return memory_mb("/proc/self/status", "VmRSS")


def plain_loop(folder: Path, case: Case, device: str, bfloat16: bool) -> Callable[[], dict[str, float]]:
    """The loop by hand; each turn tells rows per second and how much memory was held at first."""
    labels = read_frame_labels(folder / "labels", LabelFormat(range=(-1, 1)))
    parts = {}
    for name in DIMS:
        with open_cache(folder / f"{name}.zarr") as store:
            parts[name] = [torch.from_numpy(np.asarray(store[clip].frames)) for clip in labels.ids]
    values = [torch.from_numpy(np.nan_to_num(labels.values[labels.rows_of([i])], nan=-5)) for i in range(len(labels))]
    settings = resolve_settings(CONFIG)
    data = Windows(parts["visual"], parts["audio"], values, settings.window, settings.hop)
    loaded = held_mb()
    loader = DataLoader(data, batch_size=settings.batch_size, shuffle=True, collate_fn=collate)
    network = PlainNetwork(*DIMS.values()).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def turn() -> dict[str, float]:
        seen, started = 0, time.perf_counter()
        for visual, audio, targets, outside in itertools.islice(loader, case.batches):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                predicted = network(visual.to(device), audio.to(device), outside.to(device))
            loss = ccc_loss(predicted, targets.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
            seen += int((~outside).sum())
        return {"rate": seen / (time.perf_counter() - started), "loaded": loaded}

    return turn


def own_loop(
    folder: Path, case: Case, device: str, precision: str, micro_batch: int = 0
) -> Callable[[], dict[str, float]]:
    """emi's trainer; each turn tells rows per second and how much memory was held at first."""
    given = {"device": device, "precision": precision, "micro_batch": micro_batch, "label_fps": FPS}
    settings = resolve_settings(CONFIG, **given).on_this_machine()
    files = LabelFiles.named(folder / "labels", format=settings.label_format())
    inputs = gather_inputs({name: folder / f"{name}.zarr" for name in DIMS}, files)
    trainer = Trainer(settings, inputs.splits["train"], None, None)
    loaded = held_mb()
    numbers = itertools.count(1)

    def turn() -> dict[str, float]:
        windows = trainer.train.windows
        assert windows is not None
        started = time.perf_counter()
        trainer.run_epoch(next(numbers), case.batches)
        seconds = time.perf_counter() - started
        rows = case.batches * settings.batch_size * statistics.mean(window.rows for window in windows)
        return {"rate": rows / seconds, "loaded": loaded}

    return turn


def beyond_libraries(
    make: Callable[..., Callable[[], dict[str, float]]], folder: Path, case: Case, *options: str | int
) -> Callable[[], dict[str, float]]:
    """Make a loop that tells its memory beyond that of the libraries which it uses."""
    with tempfile.TemporaryDirectory(prefix="emi-frames-") as small:
        few = Case(clips=1, rows=30, batches=1)
        few.write(Path(small))
        make(Path(small), few, *options)()
    ctypes.CDLL(None).malloc_trim(0)  # what the small loop left free is not of the libraries
    before = held_mb()
    loop = make(folder, case, *options)

    def turn() -> dict[str, float]:
        told = loop()
        return told | {"loaded": told["loaded"] - before, "most": peak_mb() - before}

    return turn


def measure(case: Case, device: str) -> list[dict[str, Any]]:
    """Take turns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emi-frames-")))
        case.write(folder)
        loops = {
            "DataLoader loop, fp32": in_process(stack, beyond_libraries, plain_loop, folder, case, device, False),
            "emi, fp32": in_process(stack, beyond_libraries, own_loop, folder, case, device, "fp32"),
        }
        if device == "cpu":
            loops["emi, fp32, micro_batch 8"] = in_process(
                stack, beyond_libraries, own_loop, folder, case, device, "fp32", 8
            )
        fast = resolve_settings(CONFIG, device=device).on_this_machine().precision
        if fast == "bf16":
            loops["DataLoader loop, bf16"] = in_process(stack, beyond_libraries, plain_loop, folder, case, device, True)
            loops["emi, bf16"] = in_process(stack, beyond_libraries, own_loop, folder, case, device, "bf16")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
        for number in range(case.turns + 1):
            for name, loop in loops.items():
                print(f"{name}, turn {number} ...", file=sys.stderr, flush=True)
                told = loop()
                if number:
                    found[name].append(told)
    return [row(name, turns, found, case) for name, turns in found.items()]


def row(
    name: str, turns: list[dict[str, float]], found: dict[str, list[dict[str, float]]], case: Case
) -> dict[str, Any]:
    """Figures of one loop beside the others."""
    rates = [turn["rate"] for turn in turns]
    told: dict[str, Any] = {"name": name, "rows_per_second": statistics.median(rates), "turns": len(turns)}
    for peer in ("fp32", "bf16"):
        others = found.get(f"DataLoader loop, {peer}")
        if others:
            ratios = (own / other["rate"] for own, other in zip(rates, others, strict=True))
            told[f"times_loop_{peer}"] = statistics.median(ratios)
    told |= {f"memory_{key}": turns[-1][key] / case.stored_mb for key in ("loaded", "most")}
    told["epoch_seconds"] = int(case.lengths.sum()) * OVERLAPPING / told["rows_per_second"]
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few clips: does it run at all?")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    rows = measure(Case(clips=4, rows=700, batches=1, turns=1) if options.quick else Case(), options.device)
    print(f"{header_line()}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| row | rows/s | times loop fp32 | times loop bf16 | memory loaded | at most | s per epoch |")
    print("|---|---|---|---|---|---|---|")
    columns = ("rows_per_second", "times_loop_fp32", "times_loop_bf16", "memory_loaded", "memory_most", "epoch_seconds")
    for told in rows:
        cells = [figure(told[key]) if key in told else "" for key in columns]
        print(f"| {told['name']} | {' | '.join(cells)} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
