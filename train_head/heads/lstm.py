"""The paper's head: an LSTM's last state beside the time mean of its input."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from train_head.heads.encoder import RecurrentEncoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions, between_layers
from train_head.heads.recurrent import lstm_states
from train_head.heads.regressor import paper_regressor


@dataclass(frozen=True, kw_only=True)
class LstmOptions(HeadOptions):
    """Settings of `LstmHead`; the defaults are the paper's.

    Attributes:
        hidden: size of the LSTM's state; 0 takes the input's size (1027 in the paper).
        layers: stacked LSTM layers.
        dropout: between the LSTM layers.
        global_vector: whether the time mean of the input stands beside the last state.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 0
    layers: int = 2
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


class LstmEncoder(RecurrentEncoder):
    """LSTM; the summary is [time mean of the input, last state].

    Batches are padded and the last valid state is taken, which gives the numbers of a PackedSequence at ten times its
    speed on CPU: an LSTM in one direction never sees the padding behind a clip before the clip's last state.
    """

    def __init__(self, dim: int, options: Any) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden, global_vector=getattr(options, "global_vector", False))
        self.lstm = nn.LSTM(dim, hidden, options.layers, batch_first=True, dropout=between_layers(options))

    def read(self, rows: Tensor) -> Tensor:
        """See `RecurrentEncoder`."""
        return lstm_states(self.lstm, rows)


class LstmHead(Head):
    """LSTM → concat [time mean of the input, last state] → Linear → Tanh → Linear (arXiv 2403.11879, section 3)."""

    Options = LstmOptions
    Encoder = LstmEncoder

    @staticmethod
    def make_regressor(width: int, targets: int, options: LstmOptions) -> nn.Module:
        """See `Head`: without dropout, as the paper's."""
        return paper_regressor(width, targets, options.output)
