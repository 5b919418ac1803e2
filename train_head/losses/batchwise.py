"""Losses that compare the clips of a batch: correlations, and squared errors balanced by how common a label is.

Correlations are computed per target and averaged. A target whose labels are all alike in a batch has no correlation,
and is left out of the mean, as the metrics leave it out. Where no target is left, as in a batch of one clip, the loss
is 0 and so is its gradient: such a batch teaches nothing, and the number is finite. Constant predictions of labels that
vary are a correlation of 0, a loss of 1, with a finite gradient that points towards the labels, so training leaves this
state by itself.
"""

import torch
from torch import Tensor

from train_head.losses.elementwise import weighted_mean

FLATTEST = 1e-3
"""Predictions that spread less than this share of the labels' spread count as if they spread that much (Pearson).

The gradient of r grows as one over the spread of the predictions; this bounds it, and r goes to 0 as they flatten.
"""
ROUNDING = 16
"""A spread below this many units of rounding of the largest label is that of a constant column: its mean is rounded."""


def pearson(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - Pearson correlation, mean over the targets whose labels vary.

    Args:
        predicted: (batch, targets).
        target: (batch, targets).
        weight: (batch, targets) weights of the moments, or None.
    """
    _, own, labels, shared = _moments(predicted, target, weight)
    varies = _varies(labels, target)
    labels = torch.where(varies, labels, 1.0)
    correlation = shared / (own.clamp_min(FLATTEST**2 * labels) * labels).sqrt()
    return _mean_where(varies, 1.0 - correlation)


def ccc(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - concordance correlation (Lin, Biometrics 1989; population moments), mean over the targets that vary.

    Args:
        predicted: (batch, targets).
        target: (batch, targets).
        weight: (batch, targets) weights of the moments, or None.
    """
    apart, own, labels, shared = _moments(predicted, target, weight)
    varies = _varies(labels, target)
    concordance = 2.0 * shared / (own + torch.where(varies, labels, 1.0) + apart.square())
    return _mean_where(varies, 1.0 - concordance)


def balanced_mse(predicted: Tensor, target: Tensor, weight: Tensor | None = None, *, noise: float = 0.2) -> Tensor:
    """Balanced MSE: squared error as if all labels were equally common (Ren et al., CVPR 2022), per target.

    This is the batch-based Monte-Carlo variant. A prediction must be nearer to its own label than to the other labels
    of the batch, which stand for how common each label is: cross-entropy over the batch of
    `-(prediction - label)² / (2 noise²)`, times `2 noise²` as in the paper. A batch of one has no other labels: loss
    and gradient are 0. Memory is batch² per target.

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
        # one's own stays, so none is empty
        logits = logits.masked_fill(others & (weight == 0).unsqueeze(0), -torch.inf)
    own = -(predicted - target).square() / scale
    return scale * weighted_mean(torch.logsumexp(logits, dim=1) - own, weight)


def _moments(predicted: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """Difference of the means, variance of the predictions, of the labels, and covariance; (targets,) each."""
    weight = torch.ones_like(target) if weight is None else weight
    total = weight.sum(0)
    share = weight / torch.where(total > 0, total, 1.0)
    predicted_mean, target_mean = (share * predicted).sum(0), (share * target).sum(0)
    a, b = predicted - predicted_mean, target - target_mean
    return (
        predicted_mean - target_mean,
        (share * a.square()).sum(0),
        (share * b.square()).sum(0),
        (share * a * b).sum(0),
    )


def _varies(variance: Tensor, target: Tensor) -> Tensor:
    rounding = ROUNDING * torch.finfo(target.dtype).eps * target.abs().amax(0)
    return variance > rounding.square()


def _mean_where(varies: Tensor, values: Tensor) -> Tensor:
    return torch.where(varies, values, 0.0).sum() / varies.sum().clamp_min(1)
