"""A linear layer on the time mean: the challenge's official audio baseline."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.pooling import time_mean


@dataclass(frozen=True, kw_only=True)
class MeanOptions:
    """`MeanHead` has no settings."""


class MeanHead(nn.Module):
    """Time mean → Linear."""

    Options = MeanOptions

    def __init__(self, dim: int, targets: int, options: MeanOptions) -> None:  # noqa: ARG002
        super().__init__()
        self.linear = nn.Linear(dim, targets)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        out: Tensor = self.linear(time_mean(frames, lengths))
        return out
