"""Training a head beside the loops that users write, on the same clips, in one run:

    python benchmarks/train_head.py [--quick] [--case paper|derived] [--device cuda] [--json FILE]

Three loops train the same head with the same settings on the 8,072 training clips of a synthetic Hume-Vidmimic2 (noise,
with its lengths): (a) a DataLoader and a packed `nn.LSTM`, (b) the same with a padded one, (c) emi. Each loop lives in
a process of its own, and each turn takes a few batches of a new epoch. Frames per second count the clips' own frames,
never padding. The rows take turns, and the figure is the median of their turns; the ratio is that of turns that follow
each other.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks._feature_clips import EMI
from benchmarks._machine import header_line
from benchmarks._plain_head import Clips, PlainHead, collate
from benchmarks._timing import figure
from train_head.data.labels import Labels
from train_head.data.names import UNNAMED
from train_head.data.splits import Split
from train_head.data.streams import Stream
from train_head.training.settings import TrainSettings, resolve_settings
from train_head.training.trainer import Trainer

TARGETS = 6
EPOCH_CLIPS, VALID_CLIPS = 8072, 4588
"""Training and validation clips of Hume-Vidmimic2."""
NOISE_FRAMES = 200_000
"""That clips are cut from: 400 MB of the paper's features, many times a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One head on one kind of features.

    Attributes:
        name: for the table.
        dim: features per frame.
        pool: frames of 20 ms that were averaged into one.
        hidden: of the LSTM; 0 takes the input's size.
        batches: of 32 clips that (a), (b) and (c) train on in one turn; packed, the paper's head takes seconds a clip.
        turns: of each row.
        warm_up: turns before these, which do not count.
    """

    name: str
    dim: int
    pool: int
    hidden: int
    batches: tuple[int, int, int]
    turns: int
    warm_up: int

    def quick(self) -> "Case":
        """Enough to see that it runs."""
        return replace(self, dim=min(self.dim, 48), hidden=min(self.hidden, 48), batches=(1, 1, 2), turns=1, warm_up=0)

    def settings(self, **others: Any) -> TrainSettings:
        """The paper's, but for the hidden size."""
        return resolve_settings(hidden=self.hidden, epochs=1, **others)

    def split(self, clips: int, seed: int = 0) -> Split:
        """Clips with the data set's lengths, cut from one block of noise that fits in memory."""
        rng = np.random.default_rng(seed)
        lengths = torch.from_numpy(-(-rng.permutation(EMI.lengths())[:clips] // self.pool))
        frames = torch.randn(NOISE_FRAMES, self.dim, generator=torch.Generator().manual_seed(seed)).half()
        starts = torch.from_numpy(rng.integers(0, NOISE_FRAMES - int(lengths.max()), clips))
        targets = torch.from_numpy(rng.uniform(size=(clips, TARGETS)).astype(np.float32))
        ids = tuple(f"{i:05d}" for i in range(clips))
        labels = Labels("synthetic", ids, ids, tuple("abcdef"[:TARGETS]), targets.numpy())
        return Split(labels, {UNNAMED: Stream(UNNAMED, frames, starts, lengths)}, targets)


CASES = (
    Case(name="paper", dim=1027, pool=1, hidden=0, batches=(1, 2, 8), turns=2, warm_up=0),
    Case(name="derived", dim=128, pool=5, hidden=256, batches=(4, 16, 128), turns=5, warm_up=1),
)


def plain_loop(case: Case, batches: int, packed: bool, device: str) -> Callable[[], float]:
    """(a) or (b): some random batches each time it is called; the clips' frames per second."""
    split = case.split(EPOCH_CLIPS)
    head = PlainHead(case.dim, case.hidden or case.dim, TARGETS, packed=packed).to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    loader = DataLoader(Clips(split), batch_size=32, shuffle=True, collate_fn=collate)

    def turn() -> float:
        seen = 0
        started = time.perf_counter()
        for frames, lengths, targets in islice(loader, batches):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(
                head(frames.to(device), lengths if packed else lengths.to(device)), targets.to(device)
            )
            loss.backward()
            optimizer.step()
            loss.item()
            seen += int(lengths.sum())
        return seen / (time.perf_counter() - started)

    return turn


def own_loop(case: Case, batches: int, device: str, precision: str) -> Callable[[], float]:
    """(c): the first batches of an epoch of emi's trainer each time it is called; the clips' frames per second."""
    settings = case.settings(device=device, precision=precision).on_this_machine()
    trainer = Trainer(settings, case.split(EPOCH_CLIPS), None, None)
    numbers = count(1)

    def turn() -> float:
        return float(trainer.run_epoch(next(numbers), batches)["frames_per_second"])

    return turn


def in_process(stack: ExitStack, build: Callable[..., Callable[[], Any]], *arguments: Any) -> Callable[[], Any]:
    """A loop in a process of its own, which ends with the stack: what one sets for its process, no other has."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_take_turns, args=(there, build, *arguments), daemon=True)
    process.start()
    there.close()
    here.recv()  # it is built: no turn is taken beside another loop's making
    stack.callback(process.join)
    stack.callback(here.close)

    def turn() -> Any:
        here.send(None)
        return here.recv()

    return turn


def _take_turns(pipe: Connection, build: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    turn = build(*arguments)
    pipe.send(None)
    try:
        while True:
            pipe.recv()
            pipe.send(turn())
    except EOFError:  # the stack has closed
        pass


def measure(case: Case, device: str) -> list[dict[str, Any]]:
    """The rows of one case."""
    packed, padded, own = case.batches
    rows = []
    with ExitStack() as stack:
        loops = {
            "(a) DataLoader, packed nn.LSTM": in_process(stack, plain_loop, case, packed, True, device),
            "(b) DataLoader, padded nn.LSTM": in_process(stack, plain_loop, case, padded, False, device),
            "(c) emi, fp32": in_process(stack, own_loop, case, own, device, "fp32"),
        }
        automatic = case.settings(device=device).on_this_machine().precision
        if automatic != "fp32":
            loops[f"(d) emi, {automatic}"] = in_process(stack, own_loop, case, own, device, automatic)
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(case.turns + case.warm_up):
            for name, loop in loops.items():
                print(f"{case.name}: {name}, turn {turn} ...", file=sys.stderr, flush=True)
                rate = loop()
                if turn >= case.warm_up:
                    rates[name].append(rate)
    epoch = int(case.split(EPOCH_CLIPS).costs.sum())
    for name, values in rates.items():
        row: dict[str, Any] = {"name": f"{case.name}: {name}", "frames_per_second": statistics.median(values)}
        for key, peer in (("times_a", "(a)"), ("times_b", "(b)")):
            (others,) = (v for other, v in rates.items() if other.startswith(peer))
            row[key] = statistics.median(own / other for own, other in zip(values, others, strict=True))
        rows.append(row | {"epoch_seconds": epoch / row["frames_per_second"], "turns": len(values)})
    return rows


def whole_epoch(case: Case, device: str) -> dict[str, Any]:
    """An epoch over a data set of the full size, validation included, measured."""
    trainer = Trainer(
        case.settings(device=device).on_this_machine(), case.split(EPOCH_CLIPS), case.split(VALID_CLIPS, 1), None
    )
    record = trainer.run_epoch(1)
    return {
        "name": f"{case.name}: emi, {EPOCH_CLIPS:,} + {VALID_CLIPS:,} clips, one epoch with validation",
        "seconds": record["seconds"],
        "frames_per_second": float(record["frames_per_second"]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny heads: does it run at all?")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.case not in (None, case.name):
            continue
        rows += measure(case.quick() if options.quick else case, options.device)
        if not options.quick and (case.name == "derived" or options.device == "cuda"):
            rows.append(whole_epoch(case, options.device))
    print(f"{header_line()}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| row | frames/s | times (a) | times (b) | s per epoch of 8,072 clips |\n|---|---|---|---|---|")
    for row in rows:
        seconds = row.get("epoch_seconds", row.get("seconds"))
        ratios = [figure(row[key]) if key in row else "" for key in ("times_a", "times_b")]
        print(f"| {row['name']} | {figure(row['frames_per_second'])} | {' | '.join(ratios)} | {figure(seconds)} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
