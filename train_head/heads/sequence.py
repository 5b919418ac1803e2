"""Intensities per frame, whose mean is the clip's: a head that also draws a timeline."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.encoder import RecurrentEncoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions, between_layers
from train_head.heads.recurrent import lstm_states
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


class SequenceEncoder(RecurrentEncoder):
    """LSTM; a state depends on the rows up to its own, never on later ones."""

    def __init__(self, dim: int, options: SequenceOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden, global_vector=False)
        self.lstm = nn.LSTM(dim, hidden, options.layers, batch_first=True, dropout=between_layers(options))

    def read(self, rows: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        """See `RecurrentEncoder`."""
        return lstm_states(self.lstm, rows)


class SequenceHead(Head):
    """LSTM → Linear per row; a clip's prediction is the mean over its rows."""

    Options = SequenceOptions
    Encoder = SequenceEncoder
    readout = "mean-of-rows"

    @staticmethod
    def make_regressor(width: int, targets: int, options: SequenceOptions) -> nn.Module:
        """See `Head`: one layer."""
        return one_layer(width, targets, options.dropout, options.output)
