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

sys.path[0] = str(Path(__file__).parents[1])  # this file's folder holds one named like a package

import emi
from benchmarks._material import make_checkpoint
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


if __name__ == "__main__":
    main()
