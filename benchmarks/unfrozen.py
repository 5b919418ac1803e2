"""What it is worth that the backbone learns, on labelled clips, over seeds:

    python benchmarks/unfrozen.py --media CLIPS --train CSV --valid CSV [--seeds N] [--precision fp32] [--json FILE]

Two backbones. "small" is a wav2vec 2.0 of 4 layers and 256 numbers whose weights are drawn anew for each seed: what it
knows about speech in the end, gradients brought. "silero" is trained, though not for this. Rows: a head on frozen,
cached features, 15 epochs; backbone and head in one graph, six epochs. Head, loss and clips (up to 3 s) are the same.
The small one is fine-tuned with a new head. silero goes on from the frozen row's head, and a third row is that head
after six more epochs of the same schedule beside a backbone that stays frozen. Figures are the mean validation Pearson
of the best epoch.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import emi
from benchmarks._machine import header_line
from train_head.protocols import ProtocolResult
from train_head.runs.result import TrainResult

SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
SECONDS = 3.0
HEAD = {"head": "attention", "loss": "0.5*ccc + 0.5*mse"}
FROZEN = {"epochs": 15, "lr": 1e-3}
TUNED = {"epochs": 6, "freeze": "none", "batch_seconds": 120.0, "max_seconds": SECONDS}
BACKBONES: dict[str, dict[str, Any]] = {
    "small": {"lr": 1e-3, "backbone_lr": 1e-3, "backbone_dropout": 0.0},
    "silero": {"lr": 3e-4, "backbone_lr": 1e-3},
}
"""How each is fine-tuned."""


def main() -> None:
    """Train every row with every seed and print their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", required=True, help="folder of the clips")
    parser.add_argument("--train", required=True, help="label CSV of the training split")
    parser.add_argument("--valid", required=True, help="label CSV of other speakers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", choices=list(BACKBONES), help="only this one")
    parser.add_argument(
        "--precision", choices=["auto", "fp32"], default="auto", help="of extraction and training [default: auto]"
    )
    parser.add_argument("--folder", help="where the runs stay, to go on after a stop [default: nowhere]")
    parser.add_argument("--quick", action="store_true", help="one seed and one epoch: does it run at all?")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        for name in BACKBONES if options.backbone is None else [options.backbone]:
            rows += measure(name, folder, options)
    seeds = 1 if options.quick else options.seeds
    print(f"{header_line()}; precision {options.precision}; mean validation Pearson of {seeds} seeds\n")
    print("| row | mean | std | each seed |\n|---|---|---|---|")
    for row in rows:
        each = ", ".join(f"{value:.3f}" for value in row["seeds"])
        std = "" if row["std"] is None else f"{row['std']:.3f}"
        print(f"| {row['name']} | {row['mean']:.3f} | {std} | {each} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


def measure(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a backbone."""
    found: dict[str, list[float]] = {}
    splits = (options.train, options.valid)
    shorter = {"epochs": 1} if options.quick else {}
    for seed in range(1 if options.quick else options.seeds):
        backbone, key = (small_checkpoint(folder, seed), f"small-{seed}") if name == "small" else (name, name)
        cache, head = folder / f"{key}.zarr", folder / f"{name}-frozen-{seed}"
        print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
        emi.extract(options.media, cache, backbone=backbone, precision=options.precision, max_seconds=SECONDS)
        shared = {"seed": seed, "precision": options.precision}
        result = emi.train_head(cache, *splits, head, **(HEAD | FROZEN | shorter | shared))
        found.setdefault("frozen", []).append(mean_pearson(result))
        settings = HEAD | TUNED | BACKBONES[name] | shorter | shared | {"audio": folder / "audio"}
        kinds: dict[str, dict[str, Any]] = {"fine-tuned": {}}
        if name == "silero":
            settings |= {"init_head": head}
            kinds = {"frozen, the head goes on": {"freeze": "backbone"}} | kinds
        for kind, others in kinds.items():
            out = folder / f"{name}-{kind.replace(', ', '-').replace(' ', '-')}-{seed}"
            result = emi.finetune(options.media, *splits, out, backbone=backbone, **(settings | others))
            found.setdefault(kind, []).append(mean_pearson(result))
    return [row(f"{name}, {kind}", values) for kind, values in found.items()]


def mean_pearson(result: TrainResult | ProtocolResult) -> float:
    """On the validation clips."""
    assert isinstance(result, TrainResult)
    assert result.report.mean_pearson is not None, f"{result.folder}: a head predicts the same for every clip"
    return result.report.mean_pearson


def row(name: str, found: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds; no deviation of one."""
    std = statistics.stdev(found) if len(found) > 1 else None
    return {"name": name, "mean": statistics.fmean(found), "std": std, "seeds": found}


def small_checkpoint(folder: Path, seed: int) -> str:
    """Random weights, in the transformers layout."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    place = folder / f"small-{seed}"
    if not (place / "preprocessor_config.json").exists():  # which is written last
        torch.manual_seed(seed)
        Wav2Vec2Model(Wav2Vec2Config(**SMALL)).save_pretrained(place)
        Wav2Vec2FeatureExtractor().save_pretrained(place)
    return str(place)


if __name__ == "__main__":
    main()
