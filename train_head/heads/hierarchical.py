"""An LSTM over means of segments: the order of a clip's parts, at a fraction of an LSTM's steps."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions, between_layers
from train_head.heads.pooling import last_valid, segment_means
from train_head.heads.recurrent import lstm_states


@dataclass(frozen=True, kw_only=True)
class HierarchicalOptions(HeadOptions):
    """Settings of `HierarchicalHead`.

    Attributes:
        hidden: size of the LSTM's state; 0 takes the input's size.
        layers: stacked LSTM layers.
        pool_frames: frames per segment; 10 are 0.2 s at 50 Hz, about a syllable.
        dropout: between the LSTM layers, and before the regressor's layers.
        global_vector: whether the time mean of the input stands beside the last state.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    layers: int = 2
    pool_frames: int = 10
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


class HierarchicalEncoder(Encoder):
    """LSTM over means of segments; the summary is [time mean of the input, last state].

    The last segment of a clip averages the rows it has.
    """

    def __init__(self, dim: int, options: HierarchicalOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden, global_vector=options.global_vector)
        self.lstm = nn.LSTM(dim, hidden, options.layers, batch_first=True, dropout=between_layers(options))
        self.stride = options.pool_frames

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder`."""
        states = lstm_states(self.lstm, segment_means(rows, inside, self.stride)[0])  # (batch, segments, hidden)
        return last_valid(states, (lengths + self.stride - 1).div(self.stride, rounding_mode="floor")), states


class HierarchicalHead(Head):
    """Means of segments → LSTM → concat [time mean of the input, last state] → Linear → Tanh → Linear."""

    Options = HierarchicalOptions
    Encoder = HierarchicalEncoder
