"""Intensities per frame, whose mean is the clip's: a head that also draws a timeline."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.options import check_options
from train_head.heads.pooling import masked, time_mean
from train_head.heads.recurrent import lstm_states
from train_head.heads.regressor import OUTPUTS


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
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

    def __post_init__(self) -> None:
        check_options(self)


class SequenceHead(nn.Module):
    """LSTM → Linear per frame; a clip's prediction is the mean over its frames.

    A value at a frame depends on the frames up to it, never on later ones.
    """

    Options = SequenceOptions

    def __init__(self, dim: int, targets: int, options: SequenceOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        between = options.dropout if options.layers > 1 else 0.0
        self.lstm = nn.LSTM(dim, hidden, options.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(hidden, targets)
        self.output = OUTPUTS[options.output]()

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, frames, targets), zeros behind each clip's end."""
        states = lstm_states(self.lstm, masked(frames, lengths))
        return masked(self.output(self.linear(self.dropout(states))), lengths)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        return time_mean(self.per_frame(frames, lengths), lengths)
