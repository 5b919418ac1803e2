"""The labels of a batch: one row per clip or, of labels per frame, one per labelled row of each window."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emi.finetuning.gradients import Piece
from train_head.data.splits import Split


def labels_of(
    split: Split, samples: Sequence[int], pieces: Sequence[Piece], device: torch.device
) -> tuple[Tensor, list[Piece]]:
    """Return the labels of a batch, and its pieces with the places of theirs.

    Args:
        split: clips, or windows of them.
        samples: numbers of the batch's samples.
        pieces: of the batch, with the places of their samples in it.
        device: of the labels.

    Returns:
        (clips or labelled rows, targets) float32, one window after another; the pieces.
    """
    if split.windows is None:
        return split.targets[torch.as_tensor(samples)].to(device), list(pieces)
    labelled = has_label(split, samples)
    targets = split.of_streams([]).batch(samples).targets[labelled]
    places = torch.arange(len(targets)).split(labelled.sum(dim=1).tolist())
    found = [replace(p, places=tuple(torch.cat([places[i] for i in p.places]).tolist())) for p in pieces]
    return targets.to(device), found


def has_label(split: Split, samples: Sequence[int]) -> Tensor:
    """(windows, label rows) bool, where there is a label of some target."""
    return ~split.of_streams([]).batch(samples).targets.isnan().all(dim=-1)
