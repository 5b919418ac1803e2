"""What a second stream costs in training: the paper's head on sound, alone and beside a stream of faces:

    python benchmarks/streams.py [--quick] [--device cuda] [--json FILE]

Sound is that of `benchmarks/train_head.py` (8,072 synthetic clips with the lengths of Hume-Vidmimic2, 1,027 numbers a
frame); the second stream has 6 rows of 384 numbers a second, as that data set's own faces, and the head `mean`. The two
trainers take turns of a few batches; a ratio is that of two turns that follow each other.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import emi  # noqa: F401 - before torch: it sets how OpenMP's threads wait

# isort: split
import torch

from benchmarks._machine import header_line
from benchmarks._timing import figure
from benchmarks.train_head import CASES, EPOCH_CLIPS, Case
from train_head.data.splits import Split
from train_head.data.streams import Stream
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

PAPER = CASES[0]
FACE_DIM, FACE_HZ, FRAME_HZ = 384, 6, 50


def splits(case: Case) -> tuple[Split, Split]:
    """Return clips of sound, and the same clips with faces."""
    sound = case.split(EPOCH_CLIPS)
    (audio,) = sound.streams.values()
    audio = replace(audio, name="audio", hop=1 / FRAME_HZ)
    lengths = -(-audio.lengths * FACE_HZ // FRAME_HZ)
    rows = torch.randn(int(lengths.sum()), FACE_DIM, generator=torch.Generator().manual_seed(2)).half()
    face = Stream("face", rows, lengths.cumsum(0) - lengths, lengths, hop=1 / FACE_HZ)
    return sound, replace(sound, streams={"audio": audio, "face": face})


def turns_of(case: Case, split: Split, batches: int, device: str, **more: Any) -> Callable[[], float]:
    """Return a function that trains on the first batches of a new epoch and returns seconds per batch."""
    settings = resolve_settings(hidden=case.hidden, epochs=1, device=device, **more).on_this_machine()
    trainer = Trainer(settings, split, None, None)
    numbers = count(1)
    return lambda: float(trainer.run_epoch(next(numbers), batches)["seconds"]) / batches


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny head: does it run at all?")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    case = PAPER.quick() if options.quick else PAPER
    batches, turns = (2, 1) if options.quick else (1, 5)
    sound, both = splits(case)
    rows: list[dict[str, Any]] = []
    for precision in ("fp32", "bf16"):
        alone = turns_of(case, sound, batches, options.device, precision=precision)
        beside = turns_of(case, both, batches, options.device, precision=precision, streams={"face": {"head": "mean"}})
        pairs = [(alone(), beside()) for _ in range(turns + 1)][1:]
        ratios = [other / one for one, other in pairs]
        rows.append(
            {
                "precision": precision,
                "seconds_per_batch_alone": statistics.median(one for one, _ in pairs),
                "seconds_per_batch_beside": statistics.median(other for _, other in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    print(f"{header_line()}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| precision | s per batch of 32, sound | sound and faces | ratio |\n|---|---|---|---|")
    for row in rows:
        ratio = f"{figure(row['ratio'])} ({figure(row['least'])} to {figure(row['most'])})"
        seconds = " | ".join(figure(row[f"seconds_per_batch_{name}"]) for name in ("alone", "beside"))
        print(f"| {row['precision']} | {seconds} | {ratio} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
