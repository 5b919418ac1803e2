"""Files of predictions in a run folder, in the layout of the labels that they predict."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train_head.data.frame_labels import read_frame_labels, write_frame_predictions
from train_head.data.labels import Labels, read_labels
from train_head.data.labels import write_predictions as write_clip_predictions


def prediction_file(folder: Path, split: str, labels: Labels) -> Path:
    """Return where the predictions of a split are: a CSV, or a folder where the labels are one."""
    return folder / (f"predictions_{split}" if Path(labels.path).is_dir() else f"predictions_{split}.csv")


def write_predictions(file: Path, labels: Labels, names: Sequence[str], values: NDArray[np.floating]) -> None:
    """Write predictions of every clip, or of every label row."""
    write = write_frame_predictions if labels.by_frame else write_clip_predictions
    write(file, labels, names, values)


def read_predictions(file: Path, labels: Labels) -> NDArray[np.float32]:
    """Read the predictions of some labels: (clips, targets) or (label rows, targets)."""
    read = read_frame_labels if labels.by_frame else read_labels
    return read(file, check_range=False).values
