"""Losses that look at one label at a time. All take (batch, targets) and give the weighted mean over its elements."""

import torch
from torch import Tensor
from torch.nn import functional


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all elements, each counting by its share of the weights; 0 where all weights are 0."""
    if weight is None:
        return values.mean()
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def mse(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error, the loss of arXiv 2403.11879."""
    return weighted_mean(functional.mse_loss(predicted, target, reduction="none"), weight)


def mae(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error."""
    return weighted_mean(functional.l1_loss(predicted, target, reduction="none"), weight)


def huber(predicted: Tensor, target: Tensor, weight: Tensor | None = None, *, delta: float = 1.0) -> Tensor:
    """Squared up to an error of `delta`, absolute beyond.

    `e² / (2 delta)` below and `|e| - delta / 2` above: `torch.nn.SmoothL1Loss` with `beta=delta`, which is
    `torch.nn.HuberLoss` over `delta`, so its slope for large errors is 1 whatever `delta` is.
    """
    return weighted_mean(functional.smooth_l1_loss(predicted, target, reduction="none", beta=delta), weight)


def focal_r(
    predicted: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 20.0,
    gamma: float = 1.0,
    power: float = 1.0,
) -> Tensor:
    """Focal-R: errors that are small already count less (Yang et al., ICML 2021, section 4).

    `(2 sigmoid(beta |e|) - 1)^gamma |e|^power`, as in the authors' code (github.com/YyzHarry/imbalanced-regression).

    Args:
        predicted: (batch, targets).
        target: (batch, targets).
        weight: (batch, targets) or None.
        beta: how soon an error counts in full. Theirs is 0.2 for ages of 0 to 100; 20 is the same for labels in [0, 1].
        gamma: how strongly small errors are held back.
        power: 1 is their Focal-L1, 2 their Focal-MSE.
    """
    error = (predicted - target).abs()
    floor = torch.finfo(error.dtype).eps  # the slope of a fractional power is infinite at 0
    focus = torch.tanh(0.5 * beta * error).clamp_min(floor) ** gamma
    return weighted_mean(focus * error.clamp_min(floor) ** power, weight)


def zero_inflated(predicted: Tensor, target: Tensor, weight: Tensor | None = None, *, amount: float = 10.0) -> Tensor:
    """Whether an emotion shows at all, and how much where it does: a hurdle model (Mullahy, J. Econometrics 1986).

    Cross-entropy of "the label is above 0", plus `amount` times the squared error of the amount over the labels above 0
    alone; without any such label in a batch the second part is 0.

    Args:
        predicted: (batch, 2 * targets): first the logits of "above 0", then the amounts.
        target: (batch, targets).
        weight: (batch, targets) or None.
        amount: weight of the second part. The likelihood of a normal amount of spread s has 1 / (2 s²); 10 is s = 0.22.
    """
    logit, size = predicted.chunk(2, dim=1)
    above = (target > 0).to(predicted.dtype)
    occurs = functional.binary_cross_entropy_with_logits(logit, above, reduction="none")
    among = above if weight is None else above * weight
    return weighted_mean(occurs, weight) + amount * weighted_mean((size - target).square(), among)
