"""The losses by name, and the one way in which all of them are called.

Losses that look at one label at a time give the weighted mean over the elements of a batch. Correlations compare the
clips of a batch, per target, and are averaged over the targets. A target whose labels are all alike in a batch has no
correlation, and is left out of the mean, as the metrics leave it out. Where no target is left, as in a batch of one
clip, the loss is 0 and so is its gradient: such a batch teaches nothing, and the number is finite. Constant predictions
of labels that vary are a correlation of 0, a loss of 1, with a finite gradient that points towards the labels, so
training leaves this state by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from train_head.losses.expression import keyword_options

FLATTEST = 1e-3
"""Predictions that spread less than this share of the labels' spread count as if they spread that much (Pearson).

The gradient of r grows as one over the spread of the predictions; this bounds it, and r goes to 0 as they flatten.
"""
ROUNDING = 16
"""A spread below this many units of rounding of the largest label is that of a constant column: its mean is rounded."""


@dataclass(frozen=True)
class Loss:
    """A loss over a batch.

    Attributes:
        compute: `(predicted, target, weight, **options)` to a scalar; its keyword-only parameters are the options.
        outputs: columns that a head must give per target.
        compares: whether it compares the clips of a batch with each other, and is constant for one alone.
        by_clip: whether that of a batch is the mean over its labels one by one, so that it may be computed in parts.
    """

    compute: Callable[..., Tensor]
    outputs: int = 1
    compares: bool = False
    by_clip: bool = True

    @property
    def options(self) -> dict[str, float]:
        """Keyword options with their defaults."""
        return keyword_options(self.compute)

    def __call__(self, predicted: Tensor, target: Tensor, weight: Tensor | None = None, **options: float) -> Tensor:
        """Compute the loss in float32 at least, whatever the precision of its inputs.

        Args:
            predicted: (batch, targets * outputs) what the head gives.
            target: (batch, targets) labels, NaN where one is missing: neither it nor what is predicted there counts.
            weight: (batch, targets), not negative, how much each label counts; only ratios matter. All alike if None.
            options: other values than the defaults in `options`.

        Returns:
            Scalar, float32, or float64 where an input is.

        Raises:
            ValueError: the shapes do not go together; they would otherwise broadcast.
        """
        fits = target.ndim == 2 and predicted.shape == (target.shape[0], target.shape[1] * self.outputs)
        if not fits or (weight is not None and weight.shape != target.shape):
            raise ValueError(
                f"predictions of shape {tuple(predicted.shape)} do not go with labels of shape {tuple(target.shape)}"
                f"{'' if weight is None else f' and weights of shape {tuple(weight.shape)}'}; expected (batch, "
                f"{self.outputs} * targets) and (batch, targets)"
            )
        exact = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
        weight = None if weight is None else weight.to(exact)
        predicted, target = predicted.to(exact), target.to(exact)
        missing = target.isnan()
        if missing.any():  # weight 0, and finite numbers: 0 times NaN would be NaN, in the gradient too
            predicted = predicted.masked_fill(missing.repeat(1, self.outputs), 0.0)
            target = target.masked_fill(missing, 0.0)
            weight = (torch.ones_like(target) if weight is None else weight).masked_fill(missing, 0.0)
        return self.compute(predicted, target, weight, **options)


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


def pearson(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - Pearson correlation, mean over the targets whose labels vary.

    Args:
        predicted: (batch, targets).
        target: (batch, targets).
        weight: (batch, targets) weights of the moments, or None.
    """
    _, own, labels, shared, varies = _moments(predicted, target, weight)
    labels = torch.where(varies, labels, 1.0)
    return _mean_where(varies, 1.0 - shared / (own.clamp_min(FLATTEST**2 * labels) * labels).sqrt())


def ccc(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - concordance correlation (Lin, Biometrics 1989; population moments), mean over the targets that vary.

    Args:
        predicted: (batch, targets).
        target: (batch, targets).
        weight: (batch, targets) weights of the moments, or None.
    """
    apart, own, labels, shared, varies = _moments(predicted, target, weight)
    return _mean_where(varies, 1.0 - 2.0 * shared / (own + torch.where(varies, labels, 1.0) + apart.square()))


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
    """Return the difference of the means, the variances of predictions and labels, their covariance, (targets,) each.

    The last of five is True where the labels of a target vary.
    """
    weight = torch.ones_like(target) if weight is None else weight
    total = weight.sum(0)
    share = weight / torch.where(total > 0, total, 1.0)
    predicted_mean, target_mean = (share * predicted).sum(0), (share * target).sum(0)
    a, b = predicted - predicted_mean, target - target_mean
    variance, rounding = (share * b.square()).sum(0), ROUNDING * torch.finfo(target.dtype).eps * target.abs().amax(0)
    return (
        predicted_mean - target_mean,
        (share * a.square()).sum(0),
        variance,
        (share * a * b).sum(0),
        variance > rounding.square(),
    )


def _mean_where(varies: Tensor, values: Tensor) -> Tensor:
    return torch.where(varies, values, 0.0).sum() / varies.sum().clamp_min(1)


LOSSES: dict[str, Loss] = {
    "mse": Loss(mse),  # the paper's
    "mae": Loss(mae),
    "huber": Loss(huber),
    "pearson": Loss(pearson, compares=True, by_clip=False),
    "ccc": Loss(ccc, compares=True, by_clip=False),
    "balanced_mse": Loss(balanced_mse, compares=True, by_clip=False),
    "focal_r": Loss(focal_r),
    "zero_inflated": Loss(zero_inflated, outputs=2, by_clip=False),
}
