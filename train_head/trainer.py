"""The training loop: the paper's protocol, exact resume, best epoch by validation Pearson."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from train_head import run_folder
from train_head.data import Split, shuffled_batches, sorted_batches
from train_head.errors import DivergedError
from train_head.heads import build_head
from train_head.losses import LOSSES
from train_head.metrics import Report, evaluate
from train_head.settings import TrainSettings

Record = dict[str, Any]
OnEpoch = Callable[[Record], None]


class Trainer:
    """Trains one head into one run folder; `fit` goes on from the folder's last finished epoch.

    Every epoch draws its order and its dropout from the seed and its own number, so a run that was killed and started
    again takes the same steps as one that was not.

    Args:
        settings: how to train.
        train: training split.
        valid: split by which the best epoch is chosen.
        folder: prepared run folder.
    """

    def __init__(self, settings: TrainSettings, train: Split, valid: Split, folder: Path) -> None:
        self.settings, self.train, self.valid, self.folder = settings, train, valid, folder
        torch.manual_seed(settings.seed)
        self.head = build_head(settings.head, dict(settings.head_options), train.dim, train.targets.shape[1])
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.history: list[Record] = []

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience ran out."""
        done, patience = len(self.history), self.settings.patience
        return done >= self.settings.epochs or (patience > 0 and done - self.best_epoch >= patience)

    @property
    def best_epoch(self) -> int:
        """Number (from 1) of the epoch with the highest mean validation Pearson so far; 0 before the first."""
        return max((record["epoch"] for record in self.history if record["best"]), default=0)

    def restore(self) -> None:
        """Take up the state that the folder holds, if any."""
        state = run_folder.load_state(self.folder)
        if state is not None:
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]
            run_folder.write_history(self.folder, self.history)

    def fit(self, on_epoch: OnEpoch | None = None) -> None:
        """Train to the end.

        Raises:
            DivergedError: the loss is not finite; the weights of the epochs before are kept.
        """
        while not self.finished:
            record = self._epoch(len(self.history) + 1)
            self.history.append(record)
            if record["best"]:
                self._save_best()
            run_folder.save_state(
                self.folder,
                {
                    "head": self.head.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "history": self.history,
                },
            )
            run_folder.write_history(self.folder, self.history)
            if on_epoch:
                on_epoch(record)

    def _epoch(self, number: int) -> Record:
        started = time.perf_counter()
        seed = int(np.random.SeedSequence([self.settings.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        batches = shuffled_batches(self.train.lengths, self.settings.batch_size, generator)
        self.head.train()
        total = 0.0
        for step, rows in enumerate(batches):
            lr = learning_rate(self.settings, (number - 1) * len(batches) + step, len(batches))
            total += self._step(rows, lr, number) * len(rows)
        report = self.evaluate(self.valid)
        return {
            "epoch": number,
            "train_loss": total / len(self.train),
            "lr": lr,
            "valid_mean_pearson": report.mean_pearson,
            "valid_pearson": dict(zip(report.names, report.pearson, strict=True)),
            "undefined": list(report.undefined),
            "best": not self.history
            or _score(report.mean_pearson) > max(_score(record["valid_mean_pearson"]) for record in self.history),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _step(self, rows: list[int], lr: float, epoch: int) -> float:
        frames, lengths, targets = self.train.batch(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss: Tensor = LOSSES[self.settings.loss](self.head(frames, lengths), targets)
        if not torch.isfinite(loss):
            clips = ", ".join(self.train.labels.filenames[i] for i in rows[:5])
            raise DivergedError(
                f"the loss became {loss.item()} in epoch {epoch}, in the batch of clips {clips}, …; lower --lr (now "
                f"{self.settings.lr:g}). {self.folder} keeps the weights of the epochs before"
            )
        loss.backward()
        nn.utils.clip_grad_value_(self.head.parameters(), self.settings.clip_value)
        self.optimizer.step()
        return loss.item()

    def evaluate(self, split: Split) -> Report:
        """Metrics of the current weights on a split."""
        return evaluate(predict(self.head, split), split.labels.values, split.labels.names)

    def _save_best(self) -> None:
        temporary = self.folder / f"{run_folder.BEST}.tmp"
        save_file({name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}, temporary)
        temporary.replace(self.folder / run_folder.BEST)


def _score(mean_pearson: float | None) -> float:
    """An epoch without any defined correlation ranks below every other."""
    return -math.inf if mean_pearson is None else mean_pearson


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to 0 at the end of the last epoch; `step` counts from 0 over all epochs."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def predict(head: nn.Module, split: Split, targets: int | None = None, batch_size: int = 64) -> NDArray[np.float32]:
    """(clips, targets) predictions of a head, in the order of the split."""
    head.eval()
    out = np.empty((len(split), targets or split.targets.shape[1]), np.float32)
    with torch.inference_mode():
        for rows in sorted_batches(split.lengths, batch_size):
            frames, lengths, _ = split.batch(rows)
            out[rows] = head(frames, lengths).numpy()
    return out
