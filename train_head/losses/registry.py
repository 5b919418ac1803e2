"""The losses by name, and the one way in which all of them are called."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from train_head.losses import batchwise, elementwise
from train_head.losses.expression import keyword_options


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


LOSSES: dict[str, Loss] = {
    "mse": Loss(elementwise.mse),  # the paper's
    "mae": Loss(elementwise.mae),
    "huber": Loss(elementwise.huber),
    "pearson": Loss(batchwise.pearson, compares=True, by_clip=False),
    "ccc": Loss(batchwise.ccc, compares=True, by_clip=False),
    "balanced_mse": Loss(batchwise.balanced_mse, compares=True, by_clip=False),
    "focal_r": Loss(elementwise.focal_r),
    "zero_inflated": Loss(elementwise.zero_inflated, outputs=2, by_clip=False),
}
