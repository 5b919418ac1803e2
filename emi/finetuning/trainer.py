"""The loop of end-to-end training: any number of processes, pieces that fit into memory, exact resume at every step.

One step follows the gradient of the loss over `batch_size` clips (`gradients`), however many of them fit into memory at
once and however many processes share them.

Random numbers in a piece depend only on the run's seed and the numbers of epoch, step and piece. So a run that was
killed at any step and started again takes the same steps as one that was not.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cache.system.atomic_file import replacing
from emi.finetuning.clips import ClipInputs
from emi.finetuning.depth import Depth, adapters_merged, merge_adapters
from emi.finetuning.export import read_export, write_export
from emi.finetuning.gradients import Gradients, Piece, cut
from emi.finetuning.label_places import has_label, labels_of
from emi.finetuning.memory import Load
from emi.finetuning.modalities import Clips, LearnedModality
from emi.finetuning.model import BackboneWithHead
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings
from emi.finetuning.sharding import gathered, local, moving_average, outline, part_of, shard, state_of
from train_head.data.labels import read_labels
from train_head.data.splits import Split, shuffled_batches
from train_head.data.windows import check_windows
from train_head.errors import RunFolderError
from train_head.evaluation.labelled import report_of
from train_head.losses import build_objective
from train_head.runs import run_folder
from train_head.training.compatibility import check_clock, check_targets
from train_head.training.denormals import denormals_as_zeros
from train_head.training.loop import SILENT, Record, Reporter, TrainingLoop, epoch_seed, learning_rate
from train_head.training.settings import TrainSettings
from train_head.training.trainer import put_together, samples_of

BEST_SO_FAR, FROZEN = "best_so_far.safetensors", "frozen-outputs"


class FinetuneTrainer(TrainingLoop):
    """Trains backbone and head into one run folder.

    Args:
        settings: of the head and the optimizer; precision and device resolved.
        tuning: of the backbone.
        build: makes backbone and head as they are before the first step.
        media: the decoded clips of the splits, and their modality.
        train: training split.
        valid: split by which the best epoch is chosen; None keeps the last epoch.
        processes: that share the work.
        folder: prepared run folder, which the first process writes; the others have temporary ones.
        standardise: measure mean and spread of the features before the first step.

    Raises:
        TrainSettingsError: see `check_targets`; or windows leave label rows without a prediction.
    """

    def __init__(
        self,
        settings: TrainSettings,
        tuning: FinetuneSettings,
        build: Callable[[], BackboneWithHead],
        media: tuple[LearnedModality, Clips],
        train: Split,
        valid: Split | None,
        processes: Processes,
        folder: Path,
        *,
        standardise: bool,
    ) -> None:
        super().__init__(settings, folder if processes.first else None, train.labels.targets.score)
        check_targets(settings, train.labels.targets)
        self.tuning, self.valid, self.processes = tuning, valid, processes
        self.modality, self._clips = media
        self._whole, self.train = train, samples_of(train, settings, labelled=True)
        self._build, self._place, self._home, self._standardise = build, folder, folder, standardise
        self._sharded, self._exported = False, False
        self.at_once = self.modality.at_once(processes.device.type)
        self._shared: nn.Module
        self._begin()
        model = self.model
        check_clock(settings, model.predictor)
        if train.labels.by_frame:
            check_windows(settings.window, settings.hop, train.label_reach(model.predictor.reach), settings.overlap)
        learned = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = {name for name, p in model.named_parameters() if id(p) in learned}
        self._kept = [name for name in model.state_dict() if name in names or name.startswith("predictor.")]
        average = moving_average(settings.ema)
        self.averaged = AveragedModel(model, processes.device, multi_avg_fn=average) if settings.ema else None
        objective = build_objective(settings.loss, settings.weighting, train.targets, settings.auxiliary)
        self.scaler = torch.GradScaler(processes.device.type, enabled=settings.precision == "fp16")
        self._gradients = Gradients(settings, objective.to(processes.device), self.scaler, processes)
        frames = torch.tensor([model.backbone.num_frames(n) for n in self._lengths(self.train)])
        cached = [stream.lengths for name, stream in self.train.streams.items() if name != model.stream]
        self._costs = torch.stack([frames, *cached]).sum(dim=0)  # as `Split.costs` in the cached mode
        self._progress: dict[str, Any] = {"epoch": 0}

    @property
    def evaluated(self) -> BackboneWithHead:
        """The module that is evaluated and saved: the trained one, or its moving average."""
        return self.model if self.averaged is None else cast(BackboneWithHead, self.averaged.module)

    def _lengths(self, split: Split) -> list[int]:
        """Return the rows of each sample that go into the backbone."""
        return cast(list[int], split.streams[self.model.stream].lengths.tolist())

    def _advised(self) -> contextlib.AbstractContextManager[None]:
        """Say what helps where memory runs out."""
        longest = max(self._lengths(self.train))
        return Load(self.tuning, self.depth, self.processes, self.modality, self.at_once, longest).advised()

    def restore(self) -> None:
        """See `TrainingLoop`; where there is no state, measure mean and spread of the features."""
        state = run_folder.load_state(self.folder) if self.folder is not None else None
        home, outlined = self.processes.from_first((self.folder, outline(state)))  # tensors follow one by one
        state = state if self.processes.first else outlined
        # another machine may not see the run folder
        self._home = home if home is not None and home.is_dir() else self._place
        self._exported = bool(state and state.get("exported"))
        if self._exported:
            self._remove_leftovers()
        else:
            splits = [split for split in (self.train, self.valid) if split is not None]
            self._inputs.remember(self._home / FROZEN, splits)
            if state is None and self._standardise:
                self._fit_standardisation()
            if self.tuning.fsdp:
                self._shard()
        if state is None:
            return
        self.history = state["history"]
        if self.folder is not None:
            run_folder.write_history(self.folder, self.history)
        if not self._exported:
            self._load_state(state)

    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `_save_state` saved; the other processes receive the first one's tensors."""
        self._load_kept(self.model, state["model"], from_first=True)
        if self.averaged is not None:
            self._load_kept(self.evaluated, state["averaged"], from_first=True)
            self.averaged.n_averaged.copy_(state["n_averaged"])
        self.optimizer.load_state_dict(state_of(self.optimizer, state["optimizer"]))
        self.scaler.load_state_dict(state["scaler"])
        self._progress = state["progress"]

    def fit(self, reporter: Reporter = SILENT) -> None:
        """Train to the end, and leave the best epoch as a backbone and a head."""
        super().fit(reporter if self.processes.first else SILENT)
        if self._sharded:
            self.averaged = None
            self.optimizer.state.clear()
            self.optimizer.zero_grad(set_to_none=True)
            self._begin()
        if not self._exported:
            if self.folder is not None:
                if not (self.folder / BEST_SO_FAR).is_file():
                    raise RunFolderError(f"{self.folder / BEST_SO_FAR} is missing; train into a new --out")
                self._load_kept(self.evaluated, load_file(self.folder / BEST_SO_FAR))
                write_export(self.folder, self.evaluated, self.tuning, self.settings.precision)
                run_folder.save_state(self.folder, {"history": self.history, "exported": True})
            self.processes.wait()
            self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Delete what only an unfinished run needs, including what an earlier version kept of frozen stages."""
        self._inputs.forget()
        for path in (self._home / BEST_SO_FAR, self._home / FROZEN, *self._home.glob("frozen-*.bin")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def load_best(self) -> None:
        """See `TrainingLoop`."""
        if self.folder is not None:
            read_export(self.folder, self.evaluated, self.tuning)
        elif self.tuning.lora:
            merge_adapters(self.evaluated.backbone)  # as `read_export` does in the first process
        self.processes.copy_first(self.evaluated)

    def stored_predictions(self, file: Path) -> NDArray[np.float32] | None:
        """See `TrainingLoop`: for a run that was finished before."""
        there = self._exported and self.folder is not None and file.is_file()
        return self.processes.from_first(read_labels(file, check_range=False).values if there else None)

    @denormals_as_zeros()
    def run_epoch(self, number: int) -> Record:
        """Train one epoch, counted from 1, and validate."""
        # the same batches as in the cached mode
        drawn = torch.Generator().manual_seed(epoch_seed(self.settings.seed, number))
        order = shuffled_batches(self._costs, self.settings.batch_size, drawn)
        new = {"epoch": number, "step": 0, "total": 0.0, "seconds": 0.0}
        done: dict[str, Any] = self._progress if self._progress["epoch"] == number else new
        self.depth.arrange(number)
        self._gradients.objective.epoch = number
        self.model.predictor.train()
        if not self._sharded:
            unused = self.tuning.layerdrop > 0 or not self.modality.uses_all
            self._shared = self.processes.share(self.model, unused=unused)
        started, before, saved = time.perf_counter(), done["seconds"], time.monotonic()
        for step in range(done["step"], len(order)):
            rows = order[step]
            done["total"] += self._step(rows, self._share(number, step, len(order)), number, step) * len(rows)
            done |= {"step": step + 1, "seconds": before + time.perf_counter() - started}
            self._reporter.step_finished(number, "training", step + 1, len(order))
            due = time.monotonic() - saved >= 60 * self.tuning.save_minutes
            if self.processes.agree(due) if self._sharded else due:
                self._save_state(self.folder, done)
                saved = time.monotonic()
        clips, share = sum(map(len, order)), self._share(number, len(order) - 1, len(order))
        record: Record = {
            "epoch": number,
            "train_loss": done["total"] / clips,
            "lr": share * self.settings.lr,
            "backbone_lr": share * self.tuning.backbone_lr,
            "frozen_stages": self.depth.frozen(number),
        }
        report = None
        if self.valid is not None:
            report = report_of(self.predict(self.valid, number), self.valid.labels)
        return (
            record
            | self.validation_record(report)
            | {
                "seconds": round(before + time.perf_counter() - started, 3),
                "frames_per_second": round(int(self._costs.sum()) / done["seconds"]),
                "clips_per_second": round(clips / done["seconds"], 3),
            }
        )

    def save(self, folder: Path | None, *, best: bool) -> None:
        """See `TrainingLoop`; processes that write nothing give their part of sharded tensors."""
        if best and (folder is not None or self._sharded):
            weights = self._kept_of(self.evaluated)
            if folder is not None:
                with replacing(folder / BEST_SO_FAR) as temporary:
                    save_file(weights, temporary)
            del weights  # a copy of the whole model, and the state is another
        self._save_state(folder, {"epoch": 0})
        if folder is not None:
            run_folder.write_history(folder, self.history)

    def predict(self, split: Split, epoch: int = 0) -> NDArray[np.float32]:
        """Return the (clips or label rows, targets) float32 values of the evaluated weights, on every process.

        Each sample is computed once, by one process, except those that sharded processes repeat to take as many steps.
        """
        model = self.evaluated.eval()
        split = samples_of(split, self.settings)
        lengths = self._lengths(split)
        pieces = cut(range(len(lengths)), lengths, self.at_once, self.processes.count)[self.processes.rank]
        found: list[tuple[tuple[int, ...], NDArray[np.float32]]] = []
        merged = adapters_merged(model.backbone) if self.tuning.lora and not self._sharded else contextlib.nullcontext()
        with torch.no_grad(), merged:
            for number, piece in enumerate(pieces, 1):
                if piece.counts or self._sharded:
                    with self._advised():
                        values = model.predict(*self._inputs(split, piece.rows))
                self._reporter.step_finished(epoch, "validating" if epoch else "predicting", number, len(pieces))
                if piece.counts:
                    found.append((piece.rows, values.float().cpu().numpy()))
        parts = [pair for rows, part in self.processes.gather(found) for pair in zip(rows, part, strict=True)]
        out = [value for _, value in sorted(parts, key=lambda pair: pair[0])]
        if split.windows is None:
            return np.stack(out)
        return put_together(split, range(len(out)), out, model.predictor.reach, self.settings.overlap)

    def _begin(self) -> None:
        """Build the model, whole, with a new optimizer."""
        self.model = self._build()
        self.depth = Depth(self.model.backbone, self.tuning)
        self.model.to(self.processes.device)
        self.optimizer = self._new_optimizer()
        frozen = min(self.depth.never, 2) if self.tuning.lora else self.depth.never  # adapters stand in the layers
        self._below = self.model.backbone.remembers(frozen) if hasattr(self.model.backbone, "remembers") else 0
        device, stream = self.processes.device, self.model.stream
        self._inputs = ClipInputs(self._clips, self.model.backbone, self._below, self.tuning, device, stream)
        self._shared, self._sharded = self.model, False

    def _shard(self) -> None:
        """Split the model over the processes."""
        for model in (self.model,) if self.averaged is None else (self.model, self.evaluated):
            shard(model, self._below, self.processes.device)
        self.optimizer = self._new_optimizer()
        self._sharded = True

    def _new_optimizer(self) -> torch.optim.AdamW:
        decay = self.settings.weight_decay
        head = {"params": list(self.model.predictor.parameters()), "peak": self.settings.lr}
        return torch.optim.AdamW([head, *self.depth.groups(decay)], lr=0.0, weight_decay=decay, fused=True)

    def _share(self, epoch: int, step: int, steps: int) -> float:
        """Learning rates at a step, as a fraction of their peaks."""
        return learning_rate(self.settings, (epoch - 1) * steps + step, steps) / self.settings.lr

    def _step(self, rows: list[int], share: float, epoch: int, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        self.optimizer.zero_grad(set_to_none=True)
        lengths = self._lengths(self.train)
        mine = cut(rows, [lengths[row] for row in rows], self.at_once, self.processes.count)[self.processes.rank]
        targets, mine = labels_of(self.train, rows, mine, self.processes.device)
        with self._advised():
            value = self._gradients(self._shared, mine, lambda piece: self._outputs(piece, epoch, step), targets)
            if not math.isfinite(value):
                raise self._no_number(f"the loss became {value}", epoch, rows)
            self._move(epoch, rows)  # the optimizer's memory comes with its first step
        return value

    def _move(self, epoch: int, rows: list[int]) -> None:
        """Take the optimizer's step."""
        learned = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.scaler.unscale_(self.optimizer)
        if not self.scaler.is_enabled():
            gradients = [local(p.grad) for p in learned if p.grad is not None]
            fine = bool(torch.isfinite(nn.utils.get_total_norm(gradients)))
            if not (self.processes.agree(fine) if self._sharded else fine):
                raise self._no_number("a gradient is not finite", epoch, rows)
        nn.utils.clip_grad_value_(learned, self.settings.clip_value)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def _outputs(self, piece: Piece, epoch: int, step: int) -> Tensor:
        """Return the (clips, columns) of a piece; called again it draws the same random numbers."""
        seed = epoch_seed(self.settings.seed, epoch, step, piece.number)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # SpecAugment of transformers draws from it
        noise = torch.Generator().manual_seed(seed)
        clips = self._inputs(self.train, piece.rows, noise)
        generator = torch.Generator(self.processes.device).manual_seed(seed)
        outputs: Tensor = self._shared(*clips, generator)
        return outputs if self.train.windows is None else outputs[has_label(self.train, piece.rows).to(outputs.device)]

    def _fit_standardisation(self) -> None:
        """Measure mean and spread of the training frames of the backbone as it is at the start."""
        if self.processes.first:
            self.model.eval()
            cached = {name: stream.chunks() for name, stream in self._whole.streams.items()}
            self.model.predictor.fit_inputs(cached | {self.model.stream: self._training_frames()})
        self.processes.copy_first(self.model.predictor)
        if self.averaged is not None:
            self.evaluated.load_state_dict(self.model.state_dict())

    def _training_frames(self) -> Iterator[Tensor]:
        whole = self._inputs.media_rows(self._whole, self.at_once) if self.modality.rows_alone else self._whole
        (pieces,) = cut(range(len(self._lengths(whole))), self._lengths(whole), self.at_once)
        with torch.no_grad():
            for piece in pieces:
                with self._advised():
                    clips, samples, below = self._inputs.of_media(whole, piece.rows)
                    frames, lengths = self.model.frames(clips, samples, below)
                yield from (clip[:n].cpu() for clip, n in zip(frames, lengths.tolist(), strict=True))

    def _kept_of(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.state_dict()
        whole = gathered({name: state[name] for name in self._kept}, keep=self.processes.first)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}

    def _load_kept(self, model: nn.Module, state: Mapping[str, Tensor], *, from_first: bool = False) -> None:
        if set(state) != set(self._kept):
            raise RunFolderError(
                f"{self._place} holds weights of another model; restore it from a copy, or train into a new --out"
            )
        if from_first:
            held = model.state_dict()
            state = {name: part_of(tensor, held[name]) for name, tensor in state.items()}
        model.load_state_dict(dict(state), strict=False)

    def _save_state(self, folder: Path | None, progress: Mapping[str, Any]) -> None:
        if folder is None and not self._sharded:
            return
        state: dict[str, Any] = {
            "model": self._kept_of(self.model),
            "optimizer": gathered(self.optimizer.state_dict(), keep=self.processes.first),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "progress": dict(progress),
        }
        if self.averaged is not None:
            state |= {"averaged": self._kept_of(self.evaluated), "n_averaged": self.averaged.n_averaged}
        if folder is not None:
            run_folder.save_state(folder, state)

    def _no_number(self, what: str, epoch: int, rows: list[int]) -> Exception:
        advice = f"lower --backbone-lr (now {self.tuning.backbone_lr:g}) or --lr (now {self.settings.lr:g})"
        return self.diverged(what, epoch, [self.train.filename(i) for i in rows], advice)
