"""Gradients of the loss over a whole batch, however many pieces it is computed in and processes share it.

A loss that is a mean over labels is the mean of the pieces' losses, each by its share of the labels that are present.
One that compares clips (CCC, Pearson) is computed from the outputs of all pieces together, and its gradient by those
outputs sent back through each piece, which is computed a second time for it (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup"): a third more time than keeping all, and the same
numbers.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emi.finetuning.batches import Piece
from emi.finetuning.processes import Processes
from train_head.losses import Objective, is_mean_over_clips
from train_head.training.settings import TrainSettings


class Gradients:
    """Leaves the gradients of a batch in the parameters.

    Args:
        settings: its loss and weighting.
        objective: what these stand for.
        scaler: of the loss in float16.
        processes: who shares the batch.
    """

    def __init__(
        self, settings: TrainSettings, objective: Objective, scaler: torch.GradScaler, processes: Processes
    ) -> None:
        self._is_mean_over_clips = is_mean_over_clips(settings.loss, settings.weighting)
        self._objective, self._scaler, self._processes = objective, scaler, processes

    def __call__(
        self, shared: nn.Module, mine: Sequence[Piece], outputs: Callable[[Piece], Tensor], targets: Tensor
    ) -> float:
        """Compute them and return the loss over the batch, on every process.

        Args:
            shared: the module whose gradients the processes average.
            mine: this process's pieces.
            outputs: computes those of a piece; called twice for one, it draws the same at random.
            targets: (clips, targets) of the whole batch, NaN where a label is missing.
        """
        way = self._by_clips if self._is_mean_over_clips else self._by_batch
        return way(shared, mine, outputs, targets)

    def _by_clips(
        self, shared: nn.Module, mine: Sequence[Piece], outputs: Callable[[Piece], Tensor], targets: Tensor
    ) -> float:
        total = torch.zeros((), device=targets.device)
        labels = (~targets.isnan()).sum(1).tolist()
        for i, piece in enumerate(mine):
            with self._meeting(shared, last=i == len(mine) - 1):
                share = sum(labels[place] for place in piece.places) / max(1, sum(labels)) if piece.counts else 0.0
                loss = share * self._objective(outputs(piece), targets[list(piece.places)])
                self._backward(loss)
            total += loss.detach()
        return float(self._processes.sum(total))

    def _by_batch(
        self, shared: nn.Module, mine: Sequence[Piece], outputs: Callable[[Piece], Tensor], targets: Tensor
    ) -> float:
        alone = len(mine) == 1
        with nullcontext() if alone else torch.no_grad():
            first = [outputs(piece) for piece in mine]
        parts = [(p.places, out.detach().cpu()) for p, out in zip(mine, first, strict=True) if p.counts]
        everything = first[0].detach().new_empty(len(targets), first[0].shape[1])
        for places, out in (part for found in self._processes.gather(parts) for part in found):
            everything[list(places)] = out.to(everything.device)
        everything.requires_grad_(True)
        loss = self._objective(everything, targets)
        (slope,) = torch.autograd.grad(loss, everything)
        for i, piece in enumerate(mine):
            with self._meeting(shared, last=i == len(mine) - 1):
                out = first[0] if alone else outputs(piece)
                ours = slope[list(piece.places)] * (1.0 if piece.counts else 0.0)
                self._backward((out * ours).sum())
        return float(loss.detach())

    def _backward(self, loss: Tensor) -> None:
        """Gradients are averaged over the processes, and each has computed its share of a sum."""
        self._scaler.scale(loss * self._processes.count).backward()

    def _meeting(self, shared: nn.Module, *, last: bool) -> Any:
        """Processes exchange gradients once a step; sharded ones with every piece, and hold their part only."""
        wait = isinstance(shared, DistributedDataParallel) and not last
        return shared.no_sync() if wait else nullcontext()  # type: ignore[operator]
