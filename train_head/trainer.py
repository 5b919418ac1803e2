"""The training loop: exact resume, best epoch by validation Pearson, and no step on a number that is not finite."""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train_head import run_folder
from train_head.augment import AugmentSettings, augment
from train_head.data import Split, Workspace, shuffled_batches, sorted_batches
from train_head.errors import DivergedError
from train_head.losses import build_objective
from train_head.metrics import Report, evaluate
from train_head.predictor import Predictor
from train_head.settings import TrainSettings

Record = dict[str, Any]
OnEpoch = Callable[[Record], None]


class Trainer:
    """Trains one head into one run folder; `fit` goes on from where `restore` found it.

    Every epoch draws its order, its dropout and its augmentation from the seed and its own number, so a run that was
    killed and started again takes the same steps as one that was not.

    Args:
        settings: how to train; precision and device resolved.
        train: training split.
        valid: split by which the best epoch is chosen; None keeps the last epoch.
        folder: prepared run folder; None keeps nothing on disk.
    """

    def __init__(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path | None) -> None:
        self.settings, self.folder = settings, folder
        self.device = torch.device(settings.device)
        self.train = train.to(self.device)
        self.valid = valid.to(self.device) if valid is not None else None
        torch.manual_seed(settings.seed)
        predictor = Predictor(settings, train.dim, train.targets.shape[1])
        predictor.fit_inputs(train.clips())
        self.predictor = predictor.to(self.device)
        self.averaged: AveragedModel | None = None
        if settings.ema:
            self.averaged = AveragedModel(self.predictor, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.objective = build_objective(settings.loss, settings.weighting, train.targets).to(self.device)
        self.augment = AugmentSettings(**settings.augment)
        self.optimizer = torch.optim.AdamW(
            self.predictor.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.history: list[Record] = []
        self._workspace = Workspace()

    @property
    def evaluated(self) -> nn.Module:
        """The module whose weights count: the trained one, or its moving average."""
        return self.predictor if self.averaged is None else self.averaged.module

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

    def restore(self) -> None:
        """Take up the state that the folder holds, if any."""
        state = run_folder.load_state(self.folder) if self.folder is not None else None
        if self.folder is not None and state is not None:
            self.predictor.load_state_dict(state["predictor"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            self.history = state["history"]
            run_folder.write_history(self.folder, self.history)

    def fit(self, on_epoch: OnEpoch | None = None) -> None:
        """Train to the end.

        Raises:
            DivergedError: the loss or a gradient is not finite; the weights of the epochs before are kept.
        """
        while not self.finished:
            record = self.run_epoch(len(self.history) + 1)
            self.history.append(record)
            if self.folder is not None:
                self._save(self.folder, best=record["best"])
            if on_epoch:
                on_epoch(record)

    def predict(self, split: Split) -> NDArray[np.float32]:
        """(clips, targets) float32 intensities by the weights that count, in the order of the split."""
        return predict(self.evaluated, split.to(self.device), self._workspace)

    def evaluate(self, split: Split) -> Report:
        """Metrics of the current weights on a split, in the precision of training."""
        with self._autocast():
            predicted = self.predict(split)
        return evaluate(predicted, split.labels.values, split.labels.names)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _state(self) -> dict[str, Any]:
        state = {
            "predictor": self.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        return state if self.averaged is None else state | {"averaged": self.averaged.state_dict()}

    def run_epoch(self, number: int, batches: int | None = None) -> Record:
        """Train one epoch, counted from 1, and validate; nothing is saved.

        Args:
            number: of the epoch.
            batches: stop after so many, which is for measuring.
        """
        started = time.perf_counter()
        seed = int(np.random.SeedSequence([self.settings.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(seed)
        self._order = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(self.device).manual_seed(seed)
        order = shuffled_batches(self.train.lengths, self.settings.batch_size, self._order)
        self.predictor.train()
        total = 0.0
        for step, rows in enumerate(order[:batches]):
            lr = learning_rate(self.settings, (number - 1) * len(order) + step, len(order))
            total += self._step(rows, lr, number) * len(rows)
        trained = time.perf_counter() - started
        clips = [row for rows in order[:batches] for row in rows]
        record: Record = {"epoch": number, "train_loss": total / len(clips), "lr": lr}
        record |= self._validate()
        return record | {
            "seconds": round(time.perf_counter() - started, 3),
            "frames_per_second": round(int(self.train.lengths[clips].sum()) / trained),
        }

    def _validate(self) -> Record:
        if self.valid is None:
            return {"valid_mean_pearson": None, "valid_pearson": {}, "undefined": [], "best": True}
        report = self.evaluate(self.valid)
        before = [_score(record["valid_mean_pearson"]) for record in self.history]
        return {
            "valid_mean_pearson": report.mean_pearson,
            "valid_pearson": dict(zip(report.names, report.pearson, strict=True)),
            "undefined": list(report.undefined),
            "best": not before or _score(report.mean_pearson) > max(before),
        }

    def _step(self, rows: list[int], lr: float, epoch: int) -> float:
        frames, lengths, targets = self.train.batch(rows, self._workspace)
        frames, lengths, targets = augment(frames, lengths, targets, self.augment, self._noise)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            outputs = self.predictor.outputs(frames, lengths)
        loss: Tensor = self.objective(outputs, targets)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}", epoch, rows)
        loss.backward()
        gradients = [p.grad for p in self.predictor.parameters() if p.grad is not None]
        if not torch.isfinite(nn.utils.get_total_norm(gradients)):
            raise self._diverged("a gradient is not finite", epoch, rows)
        nn.utils.clip_grad_value_(self.predictor.parameters(), self.settings.clip_value)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.predictor)
        return value

    def _diverged(self, what: str, epoch: int, rows: list[int]) -> DivergedError:
        clips = ", ".join(self.train.labels.filenames[i] for i in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        saved = self.history and self.folder is not None
        kept = f"{self.folder} keeps the weights of epoch {self.best_epoch}" if saved else "nothing is lost"
        return DivergedError(
            f"{what} in epoch {epoch}, in the batch of clips {clips}{more}; lower --lr (now {self.settings.lr:g}), and "
            f"if these clips come up again, look at their features with `emi cache verify`. {kept}"
        )

    def _save(self, folder: Path, *, best: bool) -> None:
        if best:
            temporary = folder / f"{run_folder.BEST}.tmp"
            save_file({name: t.contiguous().cpu() for name, t in self.evaluated.state_dict().items()}, temporary)
            run_folder.replace_durably(temporary, folder / run_folder.BEST)
        run_folder.save_state(folder, self._state())
        run_folder.write_history(folder, self.history)


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


def predict(
    predictor: nn.Module, split: Split, workspace: Workspace | None = None, batch_size: int = 64
) -> NDArray[np.float32]:
    """(clips, targets) float32 intensities of a predictor, in the order of the split."""
    predictor.eval()
    workspace = workspace or Workspace()
    found: list[Tensor] = []
    rows: list[int] = []
    with torch.no_grad():  # not inference_mode: training writes into the same workspace
        for batch in sorted_batches(split.lengths, batch_size):
            frames, lengths, _ = split.batch(batch, workspace)
            found.append(predictor(frames, lengths))
            rows += batch
    values = torch.cat(found).cpu().numpy()
    out = np.empty_like(values)
    out[rows] = values
    return out
