"""Balanced MSE: squared error as it would be if all labels were equally common."""

import torch
from torch import Tensor

from train_head.losses.elementwise import weighted_mean


def balanced_mse(predicted: Tensor, target: Tensor, weight: Tensor | None = None, *, noise: float = 0.2) -> Tensor:
    """Batch-based Monte-Carlo (BMC) variant, per target (Ren et al., CVPR 2022).

    A prediction must be nearer to its own label than to the other labels of the batch, which stand for how common each
    label is: cross-entropy over the batch of `-(prediction - label)² / (2 noise²)`, times `2 noise²` as in the paper.
    A batch of one has no other labels: loss and gradient are 0. Memory is batch² per target.

    Args:
        predicted: (batch, targets).
        target: (batch, targets).
        weight: (batch, targets) of each clip's cross-entropy, or None. A label of weight 0 is no rival either.
        noise: spread of the errors, the paper's sigma. Theirs is learned or tuned; a head that predicts intensities in
            [0, 1] fairly well errs by about 0.2.
    """
    scale = 2.0 * noise**2
    logits = -(predicted.unsqueeze(1) - target.unsqueeze(0)).square() / scale  # (batch, labels of the batch, targets)
    if weight is not None:
        others = ~torch.eye(len(target), dtype=torch.bool, device=target.device).unsqueeze(-1)
        logits = logits.masked_fill(
            others & (weight == 0).unsqueeze(0), -torch.inf
        )  # one's own stays, so none is empty
    own = -(predicted - target).square() / scale
    return scale * weighted_mean(torch.logsumexp(logits, dim=1) - own, weight)
