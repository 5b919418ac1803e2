"""Intensities per frame, whose mean is the clip's: a head that also draws a timeline."""

from dataclasses import dataclass

from torch import nn

from train_head.heads.head import Head
from train_head.heads.lstm import LstmEncoder
from train_head.heads.options import HeadOptions
from train_head.heads.regressor import one_layer


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(HeadOptions):
    """Settings of `SequenceHead`.

    Attributes:
        hidden: size of the LSTM's state; 0 takes the input's size.
        layers: stacked LSTM layers.
        dropout: between the LSTM layers, and before the linear layer.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1
    output: str = "linear"


class SequenceHead(Head):
    """LSTM → Linear per row; a clip's prediction is the mean over its rows, which depend on none behind them."""

    Options = SequenceOptions
    Encoder = LstmEncoder
    readout = "mean-of-rows"

    @staticmethod
    def make_regressor(width: int, targets: int, options: SequenceOptions) -> nn.Module:
        """See `Head`: one layer."""
        return one_layer(width, targets, options.dropout, options.output)
