"""What a finished run gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train_head.data.raters import Agreement
from train_head.evaluation.metrics import Report
from train_head.runs.smoothing import Smoothing
from train_head.training.loop import Record

Predictions = Mapping[str, NDArray[np.float32]]
"""By split, (clips, targets), or (label rows, targets) for labels per frame."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        predictions: by split, (clips, targets) of the best epoch, as in predictions_valid.csv.
        report: validation metrics of the best epoch.
        test_report: test metrics, where a test file with targets was given.
        best_epoch: its number, from 1.
        history: one record per epoch, as in metrics.jsonl.
        skipped: clips of the label files that no cache holds (with `skip_missing`).
        overlap: a sentence where clips are both trained and validated on, or nothing.
        agreement: of the validation clips' raters, where these were asked for.
        smoothing: of the predictions, where there is any.
        resumed_at: epochs that were done before this call; equal to len(history) where there was nothing to do.
    """

    folder: Path
    predictions: Predictions
    report: Report
    test_report: Report | None
    best_epoch: int
    history: list[Record]
    skipped: int
    overlap: str
    agreement: Agreement | None = None
    smoothing: Smoothing | None = None
    resumed_at: int
