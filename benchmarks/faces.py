"""Face detection beside facenet-pytorch, which runs the same weights, on the same pictures in one run:

    pip install --no-deps facenet-pytorch==2.6.0 torchvision==0.26.0   # its pins exclude torch 2.11
    python benchmarks/faces.py [--quick] [--json FILE]

Pictures hold drawn people, and the portrait of Grace Hopper that comes with matplotlib, turned. A ratio is that of two
calls one right after the other, the median over several pairs, because a shared machine changes its speed from second
to second. Faces are compared before anything is timed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # this file is named like a package it measures

import emi  # noqa: F401 - before torch: it sets how OpenMP's threads wait

# isort: split
import torch
from PIL import Image

from benchmarks._machine import header_line
from benchmarks._timing import figure, in_pairs, seconds_of
from emi.demo.drawing import Identity, Pose, draw
from extract.faces.mtcnn import Detector, Faces
from extract.faces.mtcnn.boxes import overlaps

SIZES = ((288, 352), (480, 640), (720, 1280))
PICTURES, BATCH, LEAST_PAIRS = 16, 8, 5
SAME = 0.9
"""Intersection over union from which two boxes are one face."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size, one pair")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = [measured(*size, 1 if options.quick else LEAST_PAIRS) for size in SIZES[: 1 if options.quick else None]]
    print(f"{header_line()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for row in rows:
        print("  ".join(f"{key} {figure(value) if isinstance(value, float) else value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measured(height: int, width: int, pairs: int) -> dict[str, Any]:
    """Compare the faces of pictures of one size, then time both."""
    ours, pictures = Detector(), pictures_of(height, width)
    row: dict[str, Any] = {"name": f"{width}x{height}"}
    try:
        from facenet_pytorch import MTCNN
    except ModuleNotFoundError as error:
        return {**row, "emi pictures/s": PICTURES / seconds_of(lambda: ours(pictures)), "error": str(error)}
    peer = MTCNN(keep_all=True, min_face_size=40)
    images = [Image.fromarray(picture) for picture in pictures]

    def one_by_one() -> None:
        for image in images:
            peer.detect(image)

    def in_batches() -> None:
        for at in range(0, len(images), BATCH):
            peer.detect(images[at : at + BATCH])

    row["faces"], row["the same"] = same_faces(peer.detect(images)[0], ours(pictures))
    single = in_pairs(one_by_one, lambda: ours(pictures), pairs)
    batched = in_pairs(in_batches, lambda: ours(pictures), pairs)
    return row | {
        "emi pictures/s": PICTURES / statistics.median(own for _, own in single + batched),
        "facenet-pytorch pictures/s": PICTURES / statistics.median(other for other, _ in single),
        f"in batches of {BATCH}": PICTURES / statistics.median(other for other, _ in batched),
        "x one by one": statistics.median(other / own for other, own in single),
        "x batches": statistics.median(other / own for other, own in batched),
    }


def same_faces(expected: Sequence[np.ndarray | None], found: Sequence[Faces]) -> tuple[int, int]:
    """Return how many faces either finds, and how many of them have one box."""
    faces = same = 0
    for boxes, ours in zip(expected, found, strict=True):
        theirs = np.zeros((0, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32)
        faces += max(len(theirs), len(ours))
        same += int((overlaps(theirs, ours.boxes) >= SAME).any(axis=1).sum()) if len(ours) else 0
    return faces, same


def pictures_of(height: int, width: int) -> np.ndarray:
    """Return (PICTURES, height, width, 3) uint8."""
    file = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    portrait = Image.open(file).convert("RGB").resize((height * 512 // 600, height))
    pictures = []
    for i in range(PICTURES):
        if i % 2:
            people = [(Identity.of(i + k), Pose(centre=(0.3 + 0.4 * k, 0.5), jaw=k / 2, roll=i - 8)) for k in range(2)]
            pictures.append(draw(people, height, width))
        else:
            canvas = Image.new("RGB", (width, height), (90, 110, 120))
            canvas.paste(portrait.rotate(2 * i - 16), ((width - portrait.width) // 2, 0))
            pictures.append(np.asarray(canvas))
    return np.stack(pictures)


if __name__ == "__main__":
    main()
