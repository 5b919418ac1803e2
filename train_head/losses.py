"""Losses by name. Each maps (batch, targets) predictions and labels to a scalar."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "mse": functional.mse_loss,  # the paper's
    "mae": functional.l1_loss,
    "huber": functional.smooth_l1_loss,
}
