"""The loop over epochs that both modes of training share: which epoch was best, when to stop, who is told.

`Trainer` (cached features) and `emi.finetuning.trainer.FinetuneTrainer` say what an epoch is and how it is saved.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train_head.data.splits import Split
from train_head.errors import DivergedError
from train_head.evaluation.metrics import Report
from train_head.runs import run_folder
from train_head.training.settings import TrainSettings

Record = dict[str, Any]
"""What metrics.jsonl holds of an epoch."""


class Reporter:
    """Hears how training proceeds. Every method does nothing unless a subclass overrides it."""

    def run_started(self, name: str, folder: Path, settings: TrainSettings) -> None:
        """Hear that a run begins in a folder; the name is empty where it is the only one."""

    def epoch_finished(self, record: Record) -> None:
        """Hear of a finished epoch."""

    def step_finished(self, epoch: int, what: str, done: int, total: int) -> None:
        """Hear of a step within an epoch, which may take hours; `what` is "training" or "validating"."""

    def note(self, text: str) -> None:
        """Hear a sentence about the run, before it begins or resumes."""

    def row_started(self, name: str) -> None:
        """Hear that a row of a table begins (`emi table1`)."""

    def clip_decoded(self, done: int, total: int, seconds: float) -> None:
        """Hear of a decoded clip: its number, the number of all clips, and its seconds (fine-tuning)."""

    def media_notes(self, notes: Sequence[Any]) -> None:
        """Hear `extract.failures.Note`s, where there is something to know of the media (fine-tuning)."""


SILENT = Reporter()


class TrainingLoop(ABC):
    """One run that trains into its folder, and resumes where the folder says it stopped.

    Args:
        settings: how to train; precision and device resolved.
        folder: prepared run folder; None keeps nothing on disk.

    Attributes:
        history: one record per finished epoch.
    """

    def __init__(self, settings: TrainSettings, folder: Path | None) -> None:
        self.settings, self.folder = settings, folder
        self.history: list[Record] = []
        self._reporter = SILENT
        choose_kernels(settings)

    @abstractmethod
    def restore(self) -> None:
        """Load the state that the folder holds, if any."""

    @abstractmethod
    def run_epoch(self, number: int) -> Record:
        """Train one epoch, counted from 1, and validate; its record is not yet in the history."""

    @abstractmethod
    def save(self, folder: Path | None, *, best: bool) -> None:
        """Save the state after an epoch, and its weights where it is the best so far; nothing without a folder."""

    @abstractmethod
    def load_best(self) -> None:
        """Load the weights of the best epoch."""

    @abstractmethod
    def predict(self, split: Split) -> NDArray[np.float32]:
        """(clips, targets) intensities, in the order of the split."""

    def stored_predictions(self, file: Path) -> NDArray[np.float32] | None:  # noqa: ARG002
        """Return what an earlier call predicted into a file, where reading it is cheaper than predicting again."""
        return None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `stop_after` of them, or patience ran out."""
        done, patience = len(self.history), self.settings.patience
        return done >= (self.settings.stop_after or self.settings.epochs) or (
            patience > 0 and done - self.best_epoch >= patience
        )

    @property
    def best_epoch(self) -> int:
        """Number (from 1) of the epoch with the highest mean validation Pearson so far; 0 before the first."""
        return max((record["epoch"] for record in self.history if record["best"]), default=0)

    def fit(self, reporter: Reporter = SILENT) -> None:
        """Train to the end.

        Raises:
            DivergedError: the loss or a gradient is not finite; the weights of the epochs before are kept.
        """
        self._reporter = reporter
        if self.history and not self.finished and self.folder is not None:
            note = run_folder.other_versions(self.folder)
            if note:
                reporter.note(note)
        while not self.finished:
            record = self.run_epoch(len(self.history) + 1)
            self.history.append(record)
            self.save(self.folder, best=record["best"])
            reporter.epoch_finished(record)

    def validation_record(self, report: Report | None) -> Record:
        """Return the part of an epoch's record that validation gives.

        Until one epoch has a defined score, each epoch is the best so far.
        """
        if report is None:
            return {"valid_mean_pearson": None, "valid_pearson": {}, "undefined": [], "best": True}
        defined = [r["valid_mean_pearson"] for r in self.history if r["valid_mean_pearson"] is not None]
        score = -math.inf if report.mean_pearson is None else report.mean_pearson
        return {
            "valid_mean_pearson": report.mean_pearson,
            "valid_pearson": dict(zip(report.names, report.pearson, strict=True)),
            "undefined": list(report.undefined),
            "best": not defined or score > max(defined),
        }

    def diverged(self, what: str, epoch: int, filenames: Sequence[str], advice: str) -> DivergedError:
        """Make the error that says what is not finite, in which clips, and what is kept."""
        clips = ", ".join(filenames[:5])
        more = f" and {len(filenames) - 5} more" if len(filenames) > 5 else ""
        saved = self.history and self.folder is not None
        kept = f"{self.folder} keeps the weights of epoch {self.best_epoch}" if saved else "nothing is lost"
        return DivergedError(f"{what} in epoch {epoch}, in the batch of clips {clips}{more}; {advice}. {kept}")


def choose_kernels(settings: TrainSettings) -> None:
    """Choose among torch's kernels on a GPU, for the whole process; a CPU's stay as they are.

    In float32, cuDNN's LSTMs and convolutions would round their inputs to 10 bits (TF32), as torch allows by default.
    cuDNN's attention, which torch 2.11 prefers on Hopper, builds a plan for every new shape, and batches have hundreds.

    Args:
        settings: with device and precision resolved.
    """
    if settings.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    if settings.device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def epoch_seed(*numbers: int) -> int:
    """Return a seed that follows from a run's seed, the number of its epoch and further numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to 0 at the end of the last epoch.

    Args:
        settings: lr, warmup_epochs, epochs.
        step: from 0, over all epochs.
        steps_per_epoch: batches.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
