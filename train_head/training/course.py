"""The course of a training: epoch after epoch, which was best, when to stop. Both modes of training share it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from train_head.errors import DivergedError
from train_head.evaluation.metrics import Report
from train_head.runs import run_folder
from train_head.training.settings import TrainSettings

Record = dict[str, Any]
OnEpoch = Callable[[Record], None]
"""Called with each epoch's record. One that has methods `on_step` and `note` hears more; see `Reporter`."""


@runtime_checkable
class Reporter(Protocol):
    """An `OnEpoch` that is also told how far an epoch is, which may take hours."""

    def __call__(self, record: Record, /) -> None:
        """Hear of a finished epoch."""

    def on_step(self, epoch: int, what: str, done: int, total: int) -> None:
        """Hear of a step: of which epoch, of training or validation, and how many of how many are done."""

    def note(self, text: str) -> None:
        """Hear a sentence about the run, before it resumes."""


class Course(ABC):
    """Epochs that are recorded, judged and saved.

    Args:
        settings: how to train.
        folder: prepared run folder; None keeps nothing on disk.

    Attributes:
        history: one record per finished epoch.
    """

    def __init__(self, settings: TrainSettings, folder: Path | None) -> None:
        self.settings, self.folder = settings, folder
        self.history: list[Record] = []
        settle_kernels(settings)
        self._reporter: Reporter | None = None

    @abstractmethod
    def run_epoch(self, number: int) -> Record:
        """Train one epoch, counted from 1, and validate; its record is not yet in the history."""

    @abstractmethod
    def save(self, folder: Path | None, *, best: bool) -> None:
        """Keep the state after an epoch, and its weights where it is the best so far; nothing without a folder."""

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or those after which to stop, or patience ran out."""
        done, patience = len(self.history), self.settings.patience
        return done >= (self.settings.stop_after or self.settings.epochs) or (
            patience > 0 and done - self.best_epoch >= patience
        )

    @property
    def best_epoch(self) -> int:
        """Number (from 1) of the epoch with the highest mean validation Pearson so far; 0 before the first."""
        return max((record["epoch"] for record in self.history if record["best"]), default=0)

    def fit(self, on_epoch: OnEpoch | None = None) -> None:
        """Train to the end.

        Raises:
            DivergedError: the loss or a gradient is not finite; the weights of the epochs before are kept.
        """
        self._reporter = on_epoch if isinstance(on_epoch, Reporter) else None
        if self._reporter and self.history and not self.finished and self.folder is not None:
            note = run_folder.other_versions(self.folder)
            if note:
                self._reporter.note(note)
        while not self.finished:
            record = self.run_epoch(len(self.history) + 1)
            self.history.append(record)
            self.save(self.folder, best=record["best"])
            if on_epoch:
                on_epoch(record)

    def stepped(self, epoch: int, what: str, done: int, total: int) -> None:
        """Report a step of an epoch: of "training" or "validating"."""
        if self._reporter:
            self._reporter.on_step(epoch, what, done, total)

    def judged(self, report: Report | None) -> Record:
        """What a record says of the validation.

        Where no epoch has had a figure yet, because there is no validation or no correlation is defined, the last one
        is the best so far.
        """
        if report is None:
            return {"valid_mean_pearson": None, "valid_pearson": {}, "undefined": [], "best": True}
        before = [_score(record["valid_mean_pearson"]) for record in self.history]
        return {
            "valid_mean_pearson": report.mean_pearson,
            "valid_pearson": dict(zip(report.names, report.pearson, strict=True)),
            "undefined": list(report.undefined),
            "best": max(before, default=-math.inf) == -math.inf or _score(report.mean_pearson) > max(before),
        }

    def diverged(self, what: str, epoch: int, filenames: Sequence[str], advice: str) -> DivergedError:
        """The error that says what is no longer finite, in which clips, and what is kept."""
        clips = ", ".join(filenames[:5])
        more = f" and {len(filenames) - 5} more" if len(filenames) > 5 else ""
        saved = self.history and self.folder is not None
        kept = f"{self.folder} keeps the weights of epoch {self.best_epoch}" if saved else "nothing is lost"
        return DivergedError(f"{what} in epoch {epoch}, in the batch of clips {clips}{more}; {advice}. {kept}")


def settle_kernels(settings: TrainSettings) -> None:
    """Choose among the kernels that torch has on a GPU, for the whole process; no CPU is concerned.

    In float32, cuDNN's LSTMs and convolutions would round their inputs to 10 bits (TF32), as torch allows by default.
    Its attention, which torch 2.11 prefers on Hopper, builds a plan for every new shape, and batches have hundreds.

    Args:
        settings: with device and precision resolved.
    """
    if settings.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    if settings.device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def epoch_seed(*numbers: int) -> int:
    """A seed that follows from a run's seed and the number of its epoch (and further numbers)."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to 0 at the end of the last epoch; `step` counts from 0 over all epochs."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _score(mean_pearson: float | None) -> float:
    """An epoch without any defined correlation ranks below every other."""
    return -math.inf if mean_pearson is None else mean_pearson
