"""The loop of end-to-end training: any number of processes, pieces that fit into memory, exact resume at every step.

One step is the gradient of the loss over `batch_size` clips, however many of them fit into memory at once and however
many processes share them. A loss that is a mean over clips is the weighted mean of the pieces' losses. One that
compares clips (CCC, Pearson) is computed from the outputs of all pieces together, and its gradient by those outputs
sent back through each piece, which is computed a second time for it (Gao et al. 2021, "Scaling deep contrastive
learning batch size under memory limited setup"): a third more time than keeping all, and the same numbers.

What is drawn at random in a piece follows from the run's seed and the numbers of epoch, step and piece alone. So a run
that was killed at any step and started again takes the same steps as one that was not.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emi.end_to_end.audio import waveform
from emi.end_to_end.batches import Piece, cut
from emi.end_to_end.depth import Depth
from emi.end_to_end.export import Export
from emi.end_to_end.frozen import FrozenOutputs, fits_on_disk
from emi.end_to_end.memory import advise
from emi.end_to_end.model import EndToEnd
from emi.end_to_end.processes import Processes, finite
from emi.end_to_end.settings import FinetuneSettings
from emi.end_to_end.waveforms import WaveformAugment
from train_head import run_folder
from train_head.course import Course, OnEpoch, Record, epoch_seed, learning_rate
from train_head.data import Split, shuffled_batches
from train_head.errors import RunFolderError
from train_head.losses import build_objective, compares_clips
from train_head.metrics import evaluate
from train_head.settings import TrainSettings

BEST_SO_FAR, FROZEN = "best_so_far.safetensors", "frozen.bin"
WIDEST = 1024
"""Numbers per frame for which room on the disk is asked."""


class FinetuneTrainer(Course):
    """Trains backbone and head into one run folder.

    Args:
        settings: of the head and the optimizer; precision and device resolved.
        own: of the backbone.
        model: backbone and head, on their device.
        train: training split; its rows are samples.
        valid: split by which the best epoch is chosen; None keeps the last epoch.
        processes: who shares the work.
        folder: prepared run folder, written by the first process.
        export: writes the best epoch as a backbone and a head when all epochs are done, and reads it.
        standardise: measure mean and spread of the features before the first step.
    """

    def __init__(
        self,
        settings: TrainSettings,
        own: FinetuneSettings,
        model: EndToEnd,
        train: Split,
        valid: Split | None,
        processes: Processes,
        folder: Path,
        export: Export,
        *,
        standardise: bool,
    ) -> None:
        super().__init__(settings, folder if processes.first else None)
        self.own, self.model, self.train, self.valid, self.processes = own, model, train, valid, processes
        self._export, self._place, self._standardise = export, folder, standardise
        self.depth = Depth(model.backbone, own)
        model.to(processes.device)
        head = {"params": list(model.predictor.parameters()), "peak": settings.lr}
        self.optimizer = torch.optim.AdamW(
            [head, *self.depth.groups(settings.weight_decay)], lr=0.0, weight_decay=settings.weight_decay, fused=True
        )
        learned = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = {name for name, p in model.named_parameters() if id(p) in learned}
        self._kept = [name for name in model.state_dict() if name in names or name.startswith("predictor.")]
        self.averaged: AveragedModel | None = None
        if settings.ema:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.objective = build_objective(settings.loss, settings.weighting, train.targets).to(processes.device)
        self._is_mean_over_clips = settings.weighting == "none" and not compares_clips(settings.loss)
        self.scaler = torch.GradScaler(processes.device.type, enabled=settings.precision == "fp16")
        self._augment = WaveformAugment(own) if own.augments else None
        self._frames = torch.tensor([model.backbone.num_frames(n) for n in train.lengths.tolist()])
        self._progress: dict[str, Any] = {"epoch": 0}
        self._exported = False
        self._shared: nn.Module = model
        self._below: int = model.backbone.remembers(min(self.depth.never, 2) if own.lora else self.depth.never)
        self._frozen: FrozenOutputs | None = None

    @property
    def evaluated(self) -> EndToEnd:
        """The module whose weights count: the trained one, or its moving average."""
        module: Any = self.model if self.averaged is None else self.averaged.module
        return module

    @property
    def piece_seconds(self) -> float:
        """Audio that goes through the backbone at once."""
        return self.own.batch_seconds or (120.0 if self.processes.device.type == "cuda" else 24.0)

    def _open_frozen(self) -> FrozenOutputs | None:
        """The file of what the frozen stages give, where there are any, always the same, and the disk has room."""
        if not (self._below and self.own.remember) or self._augment is not None:
            return None
        splits = (self.train, self.valid)
        frames = [self.model.backbone.num_frames(n) for s in splits if s is not None for n in s.lengths.tolist()]
        return FrozenOutputs(self._place / FROZEN) if fits_on_disk(self._place, frames, WIDEST) else None

    def restore(self) -> None:
        """Take up the state that the folder holds, if any; measure the features where there is none."""
        self._frozen = self._open_frozen()
        state = self.processes.from_first(run_folder.load_state(self.folder) if self.folder is not None else None)
        if state is None:
            self._fit_standardisation()
            return
        self.history = state["history"]
        if self.folder is not None:
            run_folder.write_history(self.folder, self.history)
        self._exported = state.get("exported", False)
        if self._exported:
            return
        self._load_kept(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self._load_kept(self.evaluated, state["averaged"])
            self.averaged.n_averaged.copy_(state["n_averaged"])
        self._progress = state["progress"]

    def fit(self, on_epoch: OnEpoch | None = None) -> None:
        """Train to the end, and leave the best epoch as a backbone and a head."""
        super().fit(on_epoch if self.processes.first else None)
        if not self._exported:
            if self.folder is not None:
                self._load_kept(self.evaluated, load_file(self.folder / BEST_SO_FAR))
                self._export.write(self.folder, self.evaluated)
                run_folder.save_state(self.folder, {"history": self.history, "exported": True})
                (self.folder / BEST_SO_FAR).unlink()
            self._exported = True
            self.processes.wait()
        if self._frozen is not None:
            self._frozen.remove()
            self._frozen = None

    def load_best(self) -> None:
        """Take the weights that the run kept."""
        if self.folder is not None:
            self._export.read(self.folder, self.evaluated)
        if self.processes.count > 1:
            state = self.processes.from_first({k: v.cpu() for k, v in self.evaluated.state_dict().items()})
            self.evaluated.load_state_dict(state)

    def run_epoch(self, number: int) -> Record:
        """Train one epoch, counted from 1, and validate."""
        order = self._order(number)
        done = self._progress if self._progress["epoch"] == number else _nothing_done(number)
        unused = self.own.layerdrop > 0
        self.depth.arrange(number)
        self.model.predictor.train()
        self._shared = self.processes.share(self.model, unused=unused)
        started, before = time.perf_counter(), done["seconds"]
        saved = time.monotonic()
        for step in range(done["step"], len(order)):
            rows = order[step]
            done["total"] += self._step(rows, self._share(number, step, len(order)), number, step) * len(rows)
            done["step"] = step + 1
            done["seconds"] = before + time.perf_counter() - started
            if self.folder is not None and time.monotonic() - saved >= 60 * self.own.save_minutes:
                self._save_state(self.folder, done)
                saved = time.monotonic()
        clips, share = sum(map(len, order)), self._share(number, len(order) - 1, len(order))
        record: Record = {
            "epoch": number,
            "train_loss": done["total"] / clips,
            "lr": share * self.settings.lr,
            "backbone_lr": share * self.own.backbone_lr,
            "frozen_stages": self.depth.frozen(number),
        }
        report = None
        trained = done["seconds"]
        if self.valid is not None:
            report = evaluate(self.predict(self.valid), self.valid.labels.values, self.valid.labels.names)
        return (
            record
            | self.judged(report)
            | {
                "seconds": round(before + time.perf_counter() - started, 3),
                "frames_per_second": round(int(self._frames.sum()) / trained),
                "clips_per_second": round(clips / trained, 3),
            }
        )

    def save(self, folder: Path, *, best: bool) -> None:
        """See `Course`."""
        if best:
            temporary = folder / f"{BEST_SO_FAR}.tmp"
            save_file(self._kept_of(self.evaluated), temporary)
            run_folder.replace_durably(temporary, folder / BEST_SO_FAR)
        self._save_state(folder, {"epoch": 0})
        run_folder.write_history(folder, self.history)

    def predict(self, split: Split) -> NDArray[np.float32]:
        """(clips, targets) float32 intensities by the weights that count, in the order of the split, on every process.

        Each clip is computed once, by one process.
        """
        model = self.evaluated
        model.eval()
        rows = list(range(len(split)))
        pieces = cut(rows, split.lengths.tolist(), self.piece_seconds, self.processes.count)[self.processes.rank]
        found: list[tuple[tuple[int, ...], NDArray[np.float32]]] = []
        with torch.no_grad():
            for piece in pieces:
                if piece.counts:
                    with advise(self):
                        values = model.predict(*self._inputs(split, piece.rows))
                    found.append((piece.rows, values.float().cpu().numpy()))
        parts = [part for parts in self.processes.gather(found) for part in parts]
        out = np.empty((len(split), self.train.targets.shape[1]), np.float32)
        for at, part in parts:
            out[list(at)] = part
        return out

    def _share(self, epoch: int, step: int, steps: int) -> float:
        """Of their peak, the learning rates of a step."""
        return learning_rate(self.settings, (epoch - 1) * steps + step, steps) / self.settings.lr

    def _order(self, number: int) -> list[list[int]]:
        """The batches of an epoch: those of the cached mode, since frames decide in both."""
        generator = torch.Generator().manual_seed(epoch_seed(self.settings.seed, number))
        return shuffled_batches(self._frames, self.settings.batch_size, generator)

    def _step(self, rows: list[int], share: float, epoch: int, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        self.optimizer.zero_grad(set_to_none=True)
        samples = self.train.lengths[rows].tolist()
        mine = cut(rows, samples, self.piece_seconds, self.processes.count)[self.processes.rank]
        seeds = [epoch_seed(self.settings.seed, epoch, step, piece.number) for piece in mine]
        with advise(self):
            gradients = self._by_clips if self._is_mean_over_clips else self._by_batch
            value = gradients(rows, list(zip(mine, seeds, strict=True)))
        if not math.isfinite(value):
            raise self._no_number(f"the loss became {value}", epoch, rows)
        learned = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.scaler.unscale_(self.optimizer)
        if not self.scaler.is_enabled() and not finite(p.grad for p in learned if p.grad is not None):
            raise self._no_number("a gradient is not finite", epoch, rows)
        nn.utils.clip_grad_value_(learned, self.settings.clip_value)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return value

    def _by_clips(self, rows: list[int], mine: Sequence[tuple[Piece, int]]) -> float:
        """Gradients of a loss that is a mean over clips: piece by piece."""
        total = torch.zeros((), device=self.processes.device)
        for i, (piece, seed) in enumerate(mine):
            with self._meeting(last=i == len(mine) - 1):
                share = len(piece.rows) / len(rows) if piece.counts else 0.0
                loss = share * self.objective(self._outputs(piece, seed), self._targets(piece.rows))
                self._backward(loss)
            total += loss.detach()
        return float(self.processes.sum(total))

    def _by_batch(self, rows: list[int], mine: Sequence[tuple[Piece, int]]) -> float:
        """Gradients of a loss that compares clips: through the outputs of all pieces together."""
        alone = len(mine) == 1
        first: list[Tensor] = []
        with nullcontext() if alone else torch.no_grad():
            first = [self._outputs(piece, seed) for piece, seed in mine]
        parts = [
            (piece.places, out.detach().cpu()) for (piece, _), out in zip(mine, first, strict=True) if piece.counts
        ]
        everything = first[0].detach().new_empty(len(rows), first[0].shape[1])
        for places, out in (part for found in self.processes.gather(parts) for part in found):
            everything[list(places)] = out.to(everything.device)
        everything.requires_grad_(True)
        loss = self.objective(everything, self._targets(rows))
        (slope,) = torch.autograd.grad(loss, everything)
        for i, (piece, seed) in enumerate(mine):
            with self._meeting(last=i == len(mine) - 1):
                out = first[0] if alone else self._outputs(piece, seed)
                ours = slope[list(piece.places)] * (1.0 if piece.counts else 0.0)
                self._backward((out * ours).sum())
        return float(loss.detach())

    def _backward(self, loss: Tensor) -> None:
        """Gradients are averaged over the processes, and each has computed its share of a sum."""
        self.scaler.scale(loss * self.processes.count).backward()

    def _meeting(self, *, last: bool) -> Any:
        """Processes exchange gradients once a step."""
        return nullcontext() if last or self.processes.count == 1 else self._shared.no_sync()  # type: ignore[operator]

    def _outputs(self, piece: Piece, seed: int) -> Tensor:
        """(clips, columns) of a piece, with what is drawn for it."""
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # SpecAugment of transformers draws from it
        noise = torch.Generator().manual_seed(seed)
        clips = self._inputs(self.train, piece.rows, noise)
        generator = torch.Generator(self.processes.device).manual_seed(seed)
        outputs: Tensor = self._shared(*clips, generator)
        return outputs

    def _inputs(
        self, split: Split, rows: Sequence[int], noise: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[int], int]:
        """What the model takes of some clips: waveforms, or the outputs of the frozen stages and the clips' samples."""
        if not self._below:
            return self._waveforms(split, rows, noise), [], 0
        starts, samples = split.starts[list(rows)].tolist(), split.lengths[list(rows)].tolist()
        found = [None if self._frozen is None else self._frozen.get(start) for start in starts]
        missing = [i for i, output in enumerate(found) if output is None]
        if missing:
            waveforms = self._waveforms(split, [rows[i] for i in missing], noise)
            with torch.no_grad():
                fresh = self.model.backbone.below(waveforms, self._below)
            for i, output in zip(missing, fresh, strict=True):
                found[i] = output
                if self._frozen is not None:
                    self._frozen.put(starts[i], output)
            samples = samples if self._augment is None else [len(w) for w in waveforms]
        outputs = [output.to(self.processes.device, non_blocking=True) for output in found if output is not None]
        return outputs, samples, self._below

    def _waveforms(self, split: Split, rows: Sequence[int], noise: torch.Generator | None = None) -> list[Tensor]:
        at = torch.as_tensor(rows)
        places = zip(split.starts[at].tolist(), split.lengths[at].tolist(), strict=True)
        clips = [waveform(split.frames, start, length) for start, length in places]
        if self._augment is not None and noise is not None:
            clips = [self._augment(clip, noise) for clip in clips]
        return [clip.to(self.processes.device, non_blocking=True) for clip in clips]

    def _targets(self, rows: Sequence[int]) -> Tensor:
        return self.train.targets[list(rows)].to(self.processes.device)

    def _fit_standardisation(self) -> None:
        """From the training frames of the backbone as it is at the start."""
        if not self._standardise:
            return
        if self.processes.first:
            self.model.eval()
            self.model.predictor.fit_inputs(self._training_frames())
        self.model.predictor.load_state_dict(self.processes.from_first(self.model.predictor.state_dict()))
        if self.averaged is not None:
            self.evaluated.load_state_dict(self.model.state_dict())

    def _training_frames(self) -> Iterator[Tensor]:
        (pieces,) = cut(list(range(len(self.train))), self.train.lengths.tolist(), self.piece_seconds)
        with torch.no_grad():
            for piece in pieces:
                with advise(self):
                    frames, lengths = self.model.frames(*self._inputs(self.train, piece.rows))
                yield from (clip[:n].cpu() for clip, n in zip(frames, lengths.tolist(), strict=True))

    def _kept_of(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.state_dict()
        return {name: state[name].detach().cpu().contiguous() for name in self._kept}

    def _load_kept(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        if set(state) != set(self._kept):
            raise RunFolderError(
                f"{self._place} holds weights of another model; restore it from a copy, or train into a new --out"
            )
        model.load_state_dict(dict(state), strict=False)

    def _save_state(self, folder: Path, progress: Mapping[str, Any]) -> None:
        state: dict[str, Any] = {
            "model": self._kept_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "progress": copy.copy(dict(progress)),
        }
        if self.averaged is not None:
            state |= {"averaged": self._kept_of(self.evaluated), "n_averaged": self.averaged.n_averaged}
        run_folder.save_state(folder, state)

    def _no_number(self, what: str, epoch: int, rows: list[int]) -> Exception:
        advice = f"lower --backbone-lr (now {self.own.backbone_lr:g}) or --lr (now {self.settings.lr:g})"
        return self.diverged(what, epoch, [self.train.labels.filenames[i] for i in rows], advice)


def _nothing_done(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "step": 0, "total": 0.0, "seconds": 0.0}
