"""Gradients of the loss over a whole batch, computed in pieces that fit into memory and by any number of processes.

A loss that is a mean over labels is the mean of the pieces' losses, each weighted by its share of the labels. A loss
that compares clips (CCC, Pearson) is computed from the outputs of all pieces together. Its gradient by those outputs is
then propagated through each piece, which is computed a second time for this (Gao et al. 2021, "Scaling deep contrastive
learning batch size under memory limited setup"). That takes a third more time than keeping all activations, and gives
the same numbers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emi.finetuning.processes import Processes
from extract.plan import plan_batches
from train_head.losses import Objective, is_mean_over_clips
from train_head.training.settings import TrainSettings


@dataclass(frozen=True)
class Piece:
    """Clips that go through the backbone together.

    Attributes:
        rows: numbers of the samples in the split: clips, or windows of them.
        places: of their labels in the step's batch.
        number: of the piece in the step, which seeds its dropout, whichever process computes it.
        counts: whether its gradient counts. A process with a piece less repeats one without counting it, so that all
            processes exchange gradients equally often.
    """

    rows: tuple[int, ...]
    places: tuple[int, ...]
    number: int
    counts: bool = True


def cut(rows: Sequence[int], lengths: Sequence[int], at_once: float, processes: int = 1) -> list[list[Piece]]:
    """Cut a batch into pieces, the same number for each process.

    Args:
        rows: numbers of the samples.
        lengths: of each sample.
        at_once: upper bound of samples x longest sample in a piece; a longer sample is a piece of its own.
        processes: number of processes.
    """
    share = max(lengths) * -(-len(rows) // processes)  # so that no process is left without work
    planned = plan_batches(lengths, min(at_once, share) if processes > 1 else at_once)
    pieces = [Piece(tuple(rows[i] for i in at), tuple(at), number) for number, at in enumerate(planned)]
    spread = [pieces[i::processes] for i in range(processes)]
    for mine in spread:
        if len(mine) < len(spread[0]):
            last = pieces[-1]
            mine.append(Piece(last.rows[:1], last.places[:1], last.number, counts=False))
    return spread


class Gradients:
    """Computes the gradients of a batch into the parameters.

    A process computes its part of a sum. Losses are multiplied by the number of processes, over which gradients are
    averaged.

    Args:
        settings: loss and weighting.
        objective: the loss made from these.
        scaler: of the loss in float16.
        processes: that share the batch.
    """

    def __init__(
        self, settings: TrainSettings, objective: Objective, scaler: torch.GradScaler, processes: Processes
    ) -> None:
        mean = is_mean_over_clips(settings.loss, settings.weighting)
        self._is_mean_over_clips = mean and not settings.auxiliary  # over the clips that have a stream, in its loss
        self.objective, self._scaler, self._processes = objective, scaler, processes

    def __call__(
        self, shared: nn.Module, mine: Sequence[Piece], outputs: Callable[[Piece], Tensor], targets: Tensor
    ) -> float:
        """Compute the gradients; return the loss over the batch, on every process.

        Args:
            shared: the module whose gradients the processes average.
            mine: this process's pieces.
            outputs: computes the outputs of a piece; called again, it draws the same random numbers.
            targets: (clips or label rows, targets) of the whole batch, NaN where a label is missing.
        """
        if not self._is_mean_over_clips:
            return self._by_batch(shared, mine, outputs, targets)
        total = torch.zeros((), device=targets.device)
        labels = (~targets.isnan()).sum(1).tolist()
        for i, piece in enumerate(mine):
            with _exchange(shared, last=i == len(mine) - 1):
                share = sum(labels[place] for place in piece.places) / max(1, sum(labels)) if piece.counts else 0.0
                loss = share * self.objective(outputs(piece), targets[list(piece.places)])
                self._scaler.scale(loss * self._processes.count).backward()
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
        for places, out in self._processes.gather(parts):
            everything[list(places)] = out.to(everything.device)
        everything.requires_grad_(True)
        loss = self.objective(everything, targets)
        (slope,) = torch.autograd.grad(loss, everything)
        for i, piece in enumerate(mine):
            with _exchange(shared, last=i == len(mine) - 1):
                out = first[0] if alone else outputs(piece)
                ours = slope[list(piece.places)] * (1.0 if piece.counts else 0.0)
                self._scaler.scale((out * ours).sum() * self._processes.count).backward()
        return float(loss.detach())


def _exchange(shared: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Exchange gradients once per step; sharded processes do so with every piece, and hold their part only."""
    wait = isinstance(shared, DistributedDataParallel) and not last
    return shared.no_sync() if wait else nullcontext()  # type: ignore[operator]
