"""A GRU's last state beside the time mean of its input: the paper's head with three gates instead of four."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.heads.encoder import RecurrentEncoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions, between_layers
from train_head.heads.recurrent import cudnn_states


@dataclass(frozen=True, kw_only=True)
class GruOptions(HeadOptions):
    """Settings of `GruHead`.

    Attributes:
        hidden: size of the GRU's state; 0 takes the input's size.
        layers: stacked GRU layers.
        dropout: between the GRU layers, and before the regressor's layers.
        global_vector: whether the time mean of the input stands beside the last state.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


class GruEncoder(RecurrentEncoder):
    """GRU; the summary is [time mean of the input, last state]."""

    def __init__(self, dim: int, options: GruOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden, global_vector=options.global_vector)
        self.gru = nn.GRU(dim, hidden, options.layers, batch_first=True, dropout=between_layers(options))

    def read(self, rows: Tensor) -> Tensor:
        """See `RecurrentEncoder`."""
        return cudnn_states(self.gru, rows)


class GruHead(Head):
    """GRU → concat [time mean of the input, last state] → Linear → Tanh → Linear."""

    Options = GruOptions
    Encoder = GruEncoder
