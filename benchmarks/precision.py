"""How far bfloat16 is from float32, on the same clips and the same weights:

    python benchmarks/precision.py CLIPS [--backbone FOLDER] [--quick] [--json FILE]

CLIPS is a folder of media. Per frame the cosine of the two hidden states; per output of the regression head the Pearson
correlation over the clips of the pooled value. The backbone is the paper's shape at random by default; give the real
checkpoint to have the figures of trained weights.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[0] = str(Path(__file__).parents[1])  # this file's folder holds one named like a package

import emi
from cache import open_cache


def main() -> None:
    """Extract in both precisions and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", help="folder of media")
    parser.add_argument("--backbone", help="checkpoint folder with a regression head [default: made at random]")
    parser.add_argument("--quick", action="store_true", help="a small backbone at random")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        backbone = options.backbone or str(make_checkpoint(Path(folder) / "random", options.quick))
        for precision in ("fp32", "bf16"):
            emi.extract(
                options.clips,
                Path(folder) / f"{precision}.zarr",
                backbone=backbone,
                precision=precision,
                dtype="float32",
            )
        rows = compare(Path(folder))
    for row in rows:
        print("  ".join(f"{key} {value:.6f}" if isinstance(value, float) else str(value) for key, value in row.items()))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


def compare(folder: Path) -> list[dict[str, Any]]:
    """Rows for the frames and for each output of the head."""
    cosines: list[np.ndarray[Any, Any]] = []
    with open_cache(folder / "fp32.zarr") as exact, open_cache(folder / "bf16.zarr") as rounded:
        pooled = []
        for name in exact.ids:
            a, b = exact[name], rounded[name]
            norms = np.linalg.norm(a.frames, axis=1) * np.linalg.norm(b.frames, axis=1)
            cosines.append((a.frames * b.frames).sum(axis=1) / norms)
            pooled.append((a.vad_pooled, b.vad_pooled))
        values = np.array(pooled)  # (clips, 2, 3)
        cosine = np.concatenate(cosines)
        rows: list[dict[str, Any]] = [
            {
                "name": "cosine per frame",
                "clips": len(values),
                "frames": len(cosine),
                "lowest": float(cosine.min()),
                "mean": float(cosine.mean()),
            }
        ]
        for i, output in enumerate(exact.vad_names):
            x, y = values[:, 0, i], values[:, 1, i]
            rows.append(
                {
                    "name": f"pooled {output}",
                    "pearson": float(np.corrcoef(x, y)[0, 1]),
                    "largest_difference": float(np.abs(x - y).max()),
                    "spread": float(x.std()),
                }
            )
    return rows


def make_checkpoint(folder: Path, quick: bool) -> Path:
    """Random weights in the layout of audEERING's checkpoint, regression head included."""
    from safetensors.torch import save_file
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 12}
    if quick:
        shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = Wav2Vec2Config(
        **shape,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        architectures=["Wav2Vec2ForSpeechClassification"],
        id2label={"0": "arousal", "1": "dominance", "2": "valence"},
    )
    torch.manual_seed(0)
    hidden = config.hidden_size
    weights = {f"wav2vec2.{name}": tensor for name, tensor in Wav2Vec2Model(config).state_dict().items()}
    weights |= {
        "classifier.dense.weight": torch.randn(hidden, hidden) / hidden**0.5,
        "classifier.dense.bias": torch.zeros(hidden),
        "classifier.out_proj.weight": torch.randn(3, hidden) / hidden**0.5,
        "classifier.out_proj.bias": torch.zeros(3),
    }
    folder.mkdir()
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
