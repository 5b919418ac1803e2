"""The training loop: exact resume, best epoch by validation score, and no step on a number that is not finite."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from cache.system.atomic_file import replace_durably
from cache.system.memory import keep_freed_memory
from train_head.data.splits import Placer, Split, Workspace, shuffled_batches, sorted_batches
from train_head.data.streams import Rows
from train_head.data.windows import MEAN, check_windows, join_windows, kept_rows
from train_head.errors import DivergedError, TrainSettingsError
from train_head.evaluation.labelled import report_of
from train_head.evaluation.metrics import Report
from train_head.losses import build_objective
from train_head.runs import run_folder
from train_head.training.augment import augment_batch
from train_head.training.augment_settings import AugmentSettings
from train_head.training.compatibility import check_clock, check_targets
from train_head.training.denormals import denormals_as_zeros
from train_head.training.loop import Record, TrainingLoop, epoch_seed, learning_rate
from train_head.training.predictor import Predictor
from train_head.training.settings import NEAREST, TrainSettings


class Trainer(TrainingLoop):
    """Trains one head on cached features.

    Order, dropout and augmentation of an epoch are drawn from the seed and the number of the epoch, so a run that was
    killed and started again takes the same steps as one that was not.

    Args:
        settings: how to train; precision and device resolved.
        train: training split.
        valid: split by which the best epoch is chosen; None keeps the last epoch.
        folder: prepared run folder; None keeps nothing on disk.

    Raises:
        TrainSettingsError: see `check_targets`; the head does not go with labels per frame, or windows leave label rows
            without a prediction; `micro_batch` on a GPU.
    """

    def __init__(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path | None) -> None:
        super().__init__(settings, folder, train.labels.targets.score)
        self.device = torch.device(settings.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        elif settings.micro_batch:  # cuDNN draws the dropout between recurrent layers from a state of its own
            raise TrainSettingsError(
                f"micro_batch ({settings.micro_batch}) is for a CPU, where dropout can be drawn again; leave it out, "
                "and lower --batch-size if memory runs out, or give --device cpu"
            )
        self.augment = AugmentSettings(**settings.augment)
        check_targets(settings, train.labels.targets)
        self._placed = Placer(self.device)
        self.train = self._sampled(train, labelled=True)
        self.valid = self._placed(filled(valid, settings)) if valid is not None else None
        torch.manual_seed(settings.seed)
        dims = {name: stream.dim for name, stream in train.streams.items()}
        predictor = Predictor(settings, dims, train.targets.shape[1], by_frame=train.labels.by_frame)
        if train.labels.by_frame:
            check_windows(settings.window, settings.hop, train.label_reach(predictor.reach), settings.overlap)
        check_clock(settings, predictor)
        predictor.fit_inputs({name: stream.chunks() for name, stream in train.streams.items()})
        self.predictor = predictor.to(self.device)
        self.averaged: AveragedModel | None = None
        if settings.ema:
            self.averaged = AveragedModel(self.predictor, self.device, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        objective = build_objective(settings.loss, settings.weighting, train.targets, settings.auxiliary)
        self.objective = objective.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.predictor.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self._workspace = Workspace()

    @property
    def evaluated(self) -> nn.Module:
        """The module that is evaluated and saved: the trained one, or its moving average."""
        return self.predictor if self.averaged is None else self.averaged.module

    def restore(self) -> None:
        """See `TrainingLoop`."""
        state = run_folder.load_state(self.folder) if self.folder is not None else None
        if self.folder is not None and state is not None:
            self.predictor.load_state_dict(state["predictor"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            self.history = state["history"]
            run_folder.write_history(self.folder, self.history)
        elif self.folder is not None and run_folder.is_finished(self.folder):  # its state was removed
            self.history = run_folder.read_history(self.folder)

    def load_best(self) -> None:
        """See `TrainingLoop`."""
        assert self.folder is not None
        self.evaluated.load_state_dict(run_folder.load_best(self.folder))

    def predict(self, split: Split) -> NDArray[np.float32]:
        """(clips, targets) or (label rows, targets) float32 values by the evaluated weights, in the split's order."""
        return predict(self.evaluated, self._sampled(split), self._workspace, overlap=self.settings.overlap)

    def _sampled(self, split: Split, *, labelled: bool = False) -> Split:
        """Return the samples of a split on the device."""
        return self._placed(samples_of(split, self.settings, labelled=labelled))

    def evaluate(self, split: Split) -> Report:
        """Metrics of the current weights on a split, in float32: the precision in which the run will predict."""
        return report_of(self.predict(split), split.labels)

    @denormals_as_zeros()
    def run_epoch(self, number: int, batches: int | None = None) -> Record:
        """Train one epoch, counted from 1, and validate; nothing is saved.

        Args:
            number: of the epoch.
            batches: stop after this many; for benchmarks.
        """
        started = time.perf_counter()
        seed = epoch_seed(self.settings.seed, number)
        torch.manual_seed(seed)
        self._noise = torch.Generator(self.device).manual_seed(seed)
        order = shuffled_batches(self.train.costs, self.settings.batch_size, torch.Generator().manual_seed(seed))
        self.predictor.train()
        self.objective.epoch = number
        total = 0.0
        for step, rows in enumerate(order[:batches]):
            lr = learning_rate(self.settings, (number - 1) * len(order) + step, len(order))
            total += self._step(rows, lr, number) * len(rows)
            self._reporter.step_finished(number, "training", step + 1, len(order))
        trained = time.perf_counter() - started
        samples = [row for rows in order[:batches] for row in rows]
        return {
            "epoch": number,
            "train_loss": total / len(samples),
            "lr": lr,
            **self.validation_record(self.evaluate(self.valid) if self.valid is not None else None),
            "seconds": round(time.perf_counter() - started, 3),
            "frames_per_second": round(int(self.train.costs[samples].sum()) / trained),
        }

    def _step(self, rows: list[int], lr: float, epoch: int) -> float:
        batch = self.train.batch(rows, self._workspace)
        batch = augment_batch(batch, self.augment, self._noise, self.settings.modality_dropout)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bf16",
            cache_enabled=not self.settings.micro_batch,  # else gradients of parts are summed in bfloat16
        ):
            outputs = self._outputs(batch.streams)
        targets = batch.targets
        if self.predictor.by_frame:
            labelled = ~targets.isnan().all(dim=-1)
            outputs, targets = outputs[labelled], targets[labelled]
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

    def _outputs(self, streams: Mapping[str, Rows]) -> Tensor:
        """Return what the loss sees of a batch.

        In micro-batches, each is computed once more for its gradient, with the same dropout. So the loss may depend on
        all samples together (arXiv 2101.06983).
        """
        if not self.settings.micro_batch:
            return self.predictor.training_outputs(streams)
        parts = zip(*(rows.split(self.settings.micro_batch) for rows in streams.values()), strict=True)
        outputs = [
            checkpoint(self.predictor.training_outputs, dict(zip(streams, part, strict=True)), use_reentrant=False)
            for part in parts
        ]
        return torch.cat(outputs)

    def _diverged(self, what: str, epoch: int, rows: list[int]) -> DivergedError:
        advice = (
            f"lower --lr (now {self.settings.lr:g}), and if these clips come up again, look at their features with "
            "`emi cache verify`"
        )
        return self.diverged(what, epoch, [self.train.filename(i) for i in rows], advice)

    def save(self, folder: Path | None, *, best: bool) -> None:
        """See `TrainingLoop`."""
        if folder is None:
            return
        if best:
            temporary = folder / f"{run_folder.BEST}.tmp"
            save_file({name: t.contiguous().cpu() for name, t in self.evaluated.state_dict().items()}, temporary)
            replace_durably(temporary, folder / run_folder.BEST)
        state: dict[str, Any] = {
            "predictor": self.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        run_folder.save_state(folder, state)
        run_folder.write_history(folder, self.history)


def filled(split: Split, settings: TrainSettings) -> Split:
    """Return a split of labels per frame with the nearest valid rows in the places of others, where settings say so."""
    return split.filled() if settings.missing == NEAREST and split.at is not None else split


def samples_of(split: Split, settings: TrainSettings, *, labelled: bool = False) -> Split:
    """Return the samples of a split: clips, or windows of label rows; see `Split.windowed`."""
    return filled(split, settings).windowed(settings.window, settings.hop, labelled=labelled)


def predict(
    predictor: nn.Module,
    split: Split,
    workspace: Workspace | None = None,
    batch_size: int = 64,
    *,
    overlap: str = MEAN,
) -> NDArray[np.float32]:
    """Predict a split.

    Args:
        predictor: a `Predictor`, or the mean of several.
        split: on the predictor's device; of labels per frame, in windows.
        workspace: memory for batches.
        batch_size: samples at a time.
        overlap: how windows are put together; see `train_head.data.windows.kept_rows`.

    Returns:
        (clips, targets) or (label rows, targets) float32, in the order of the split.
    """
    predictor.eval()
    workspace = workspace or Workspace()
    found: list[Tensor] = []
    samples: list[int] = []
    with torch.no_grad():  # not inference_mode: training writes into the same workspace
        for batch in sorted_batches(split.costs, batch_size):
            found += predictor(split.batch(batch, workspace).streams).unbind()
            samples += batch
    if split.windows is None:
        values: NDArray[np.float32] = torch.stack(found).cpu().numpy()
        return values[np.argsort(samples)]
    return put_together(
        split, samples, (part.cpu().numpy() for part in found), cast(Predictor, predictor).reach, overlap
    )


def put_together(
    split: Split,
    samples: Sequence[int],
    found: Iterable[NDArray[np.floating]],
    reach: tuple[int, int] | None,
    overlap: str = MEAN,
) -> NDArray[np.float32]:
    """Join what was predicted of windows.

    Args:
        split: of labels per frame, in windows.
        samples: numbers of the windows.
        found: (label rows or more, targets) of each.
        reach: see `Predictor.reach`.
        overlap: see `train_head.data.windows.kept_rows`.

    Returns:
        (label rows, targets) float32, in the order of the split.
    """
    assert split.windows is not None
    windows = [split.windows[i] for i in samples]
    reach = split.label_reach(reach) if overlap != MEAN else None
    parts = (part[: window.rows] for part, window in zip(found, windows, strict=True))
    kept = [kept_rows(window, reach, overlap) for window in windows]
    return join_windows(windows, parts, kept, split.labels.lengths.tolist())
