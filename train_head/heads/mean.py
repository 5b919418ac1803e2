"""A linear layer on the time mean: the challenge's official audio baseline."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions
from train_head.heads.pooling import time_mean
from train_head.heads.regressor import one_layer


@dataclass(frozen=True, kw_only=True)
class MeanOptions(HeadOptions):
    """Settings of `MeanHead`; the defaults are the baseline's.

    Attributes:
        dropout: before the layer.
        output: "linear", "tanh" or "sigmoid".
    """

    dropout: float = 0.0
    output: str = "linear"


class MeanEncoder(Encoder):
    """The time mean."""

    gives_states = False

    def __init__(self, dim: int, options: MeanOptions) -> None:  # noqa: ARG002
        super().__init__(dim, dim)

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        """See `Encoder`."""
        return time_mean(rows, inside), None


class MeanHead(Head):
    """Time mean → Linear."""

    Options = MeanOptions
    Encoder = MeanEncoder

    @staticmethod
    def make_regressor(width: int, targets: int, options: MeanOptions) -> nn.Module:
        """See `Head`: one layer."""
        return one_layer(width, targets, options.dropout, options.output)
