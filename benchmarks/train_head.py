"""Training a head beside the loops that users write, on the same clips, in one run:

    python benchmarks/train_head.py [--quick] [--case paper|derived] [--device cuda] [--json FILE]

Three loops train the same head with the same settings on synthetic features with the lengths of Hume-Vidmimic2:
(a) a DataLoader and a packed `nn.LSTM`, (b) the same with a padded one, (c) emi. Frames per second count the clips' own
frames, never padding. The rows take turns, and the figure is the median of their turns; the ratio is that of turns that
follow each other. (a) and (b) draw random batches, as a DataLoader does; (c) draws its own.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks._feature_clips import EMI
from benchmarks._machine import header_line
from benchmarks._timing import figure
from train_head.data import Split
from train_head.labels import Labels
from train_head.settings import TrainSettings, resolve_settings
from train_head.trainer import Trainer

TARGETS = 6
EPOCH_CLIPS, VALID_CLIPS = 8072, 4588
"""Training and validation clips of Hume-Vidmimic2."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One head on one kind of features.

    Attributes:
        name: for the table.
        dim: features per frame.
        pool: frames of 20 ms that were averaged into one.
        hidden: of the LSTM; 0 takes the input's size.
        peer_clips: that (a) and (b) train on in one turn; packed, the paper's head takes seconds per clip.
        own_clips: that (c) trains on in one turn: a whole pool of its batches.
        turns: of each row.
    """

    name: str
    dim: int
    pool: int
    hidden: int
    peer_clips: tuple[int, int]
    own_clips: int
    turns: int

    def quick(self) -> "Case":
        """Enough to see that it runs."""
        return replace(
            self, dim=min(self.dim, 48), hidden=min(self.hidden, 48), peer_clips=(32, 32), own_clips=64, turns=1
        )

    def settings(self, **others: Any) -> TrainSettings:
        """The paper's, but for the hidden size."""
        return resolve_settings(hidden=self.hidden, epochs=1, **others)

    def split(self, clips: int, seed: int = 0) -> Split:
        """Noise with the data set's lengths."""
        lengths = np.random.default_rng(seed).permutation(EMI.lengths())[:clips]
        lengths = torch.from_numpy(-(-lengths // self.pool))
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randn(int(lengths.sum()), self.dim, generator=generator).half()
        targets = torch.rand(clips, TARGETS, generator=generator)
        ids = tuple(f"{i:05d}" for i in range(clips))
        labels = Labels("synthetic", ids, ids, tuple("abcdef"[:TARGETS]), targets.numpy())
        return Split(labels, frames, lengths.cumsum(0) - lengths, lengths, targets)


CASES = (
    Case(name="paper", dim=1027, pool=1, hidden=0, peer_clips=(32, 64), own_clips=256, turns=2),
    Case(name="derived", dim=128, pool=5, hidden=256, peer_clips=(128, 512), own_clips=1024, turns=5),
)


class Clips(Dataset[tuple[Tensor, Tensor]]):
    """One clip after the other, float32, as a DataLoader wants them."""

    def __init__(self, split: Split) -> None:
        self.clips, self.targets = list(split.clips()), split.targets

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.clips[row].float(), self.targets[row]


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad with zeros."""
    clips, targets = zip(*items, strict=True)
    lengths = torch.tensor([len(clip) for clip in clips])
    return nn.utils.rnn.pad_sequence(list(clips), batch_first=True), lengths, torch.stack(targets)


class PlainHead(nn.Module):
    """The paper's head as its formula says."""

    def __init__(self, dim: int, hidden: int, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.lstm = nn.LSTM(dim, hidden, 2, batch_first=True, dropout=0.1)
        width = dim + hidden
        self.regressor = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, TARGETS))

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) → (batch, targets)."""
        mean = frames.sum(1) / lengths[:, None]
        if self.packed:
            sequence = nn.utils.rnn.pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
            last = self.lstm(sequence)[1][0][-1]
        else:
            states, _ = self.lstm(frames)
            last = states[torch.arange(len(frames)), lengths - 1]
        out: Tensor = self.regressor(torch.cat([mean, last], 1))
        return out


def plain_loop(case: Case, clips: int, packed: bool, device: str) -> Callable[[], tuple[int, float]]:
    """(a) or (b): one pass over random batches each time it is called; (frames, seconds)."""
    split = case.split(clips)
    head = PlainHead(case.dim, case.hidden or case.dim, packed).to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    loader = DataLoader(Clips(split), batch_size=32, shuffle=True, collate_fn=collate)

    def turn() -> tuple[int, float]:
        started = time.perf_counter()
        for frames, lengths, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(
                head(frames.to(device), lengths if packed else lengths.to(device)), targets.to(device)
            )
            loss.backward()
            optimizer.step()
            loss.item()
        return int(split.lengths.sum()), time.perf_counter() - started

    return turn


def own_loop(case: Case, folder: Path, **settings: Any) -> Callable[[], tuple[int, float]]:
    """(c): one epoch of emi's trainer each time it is called, without validation; (frames, seconds)."""
    split = case.split(case.own_clips)
    trainer = Trainer(case.settings(**settings).on_this_machine(), split, None, folder)

    def turn() -> tuple[int, float]:
        record = trainer.run_epoch(1)
        frames = int(split.lengths.sum())
        return frames, frames / record["frames_per_second"]

    return turn


def measure(case: Case, device: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of one case."""
    most, padded = case.peer_clips
    loops = {
        "(a) DataLoader, packed nn.LSTM": plain_loop(case, most, True, device),
        "(b) DataLoader, padded nn.LSTM": plain_loop(case, padded, False, device),
        "(c) emi, fp32": own_loop(case, folder, precision="fp32", device=device),
    }
    automatic = case.settings(device=device).on_this_machine().precision
    if automatic != "fp32":
        loops[f"(d) emi, {automatic}"] = own_loop(case, folder, precision=automatic, device=device)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(case.turns + (case.turns > 1)):
        for name, loop in loops.items():
            print(f"{case.name}: {name}, turn {turn} ...", file=sys.stderr, flush=True)
            frames, seconds = loop()
            if turn or case.turns == 1:  # the first turn warms up
                rates[name].append(frames / seconds)
    epoch = int(case.split(EPOCH_CLIPS).lengths.sum()) if case.turns > 1 else 0
    rows = []
    for name, values in rates.items():
        row: dict[str, Any] = {"name": f"{case.name}: {name}", "frames_per_second": statistics.median(values)}
        for key, peer in (("times_a", "(a)"), ("times_b", "(b)")):
            (others,) = (v for other, v in rates.items() if other.startswith(peer))
            row[key] = statistics.median(own / other for own, other in zip(values, others, strict=True))
        rows.append(row | {"epoch_seconds": epoch / row["frames_per_second"], "turns": len(values)})
    return rows


def whole_epoch(case: Case, device: str, folder: Path) -> dict[str, Any]:
    """An epoch over a data set of the full size, validation included, measured."""
    trainer = Trainer(
        case.settings(device=device).on_this_machine(), case.split(EPOCH_CLIPS), case.split(VALID_CLIPS, 1), folder
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
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if options.case not in (None, case.name):
                continue
            rows += measure(case.quick() if options.quick else case, options.device, Path(folder))
            if not options.quick and (case.name == "derived" or options.device == "cuda"):
                rows.append(whole_epoch(case, options.device, Path(folder)))
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
