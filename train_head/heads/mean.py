"""A linear layer on the time mean: the challenge's official audio baseline."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.options import OUTPUTS, HeadOptions
from train_head.heads.pooling import time_mean


@dataclass(frozen=True, kw_only=True)
class MeanOptions(HeadOptions):
    """Settings of `MeanHead`; the defaults are the baseline's.

    Attributes:
        dropout: before the layer.
        output: "linear", "tanh" or "sigmoid".
    """

    dropout: float = 0.0
    output: str = "linear"


class MeanHead(nn.Module):
    """Time mean → Linear."""

    Options = MeanOptions

    def __init__(self, dim: int, targets: int, options: MeanOptions) -> None:
        super().__init__()
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(dim, targets)
        self.output = OUTPUTS[options.output]()

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        out: Tensor = self.output(self.linear(self.dropout(time_mean(frames, lengths))))
        return out
