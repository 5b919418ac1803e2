"""An LSTM that reads each clip from both ends."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions
from train_head.heads.pooling import last_valid, masked, reverse
from train_head.heads.recurrent import lstm_states


@dataclass(frozen=True, kw_only=True)
class BilstmOptions(HeadOptions):
    """Settings of `BilstmHead`.

    Attributes:
        hidden: size of the state in each direction; 0 takes the input's size.
        layers: stacked layers; each reads both directions of the one below.
        dropout: between the layers, and before the regressor's.
        global_vector: whether the time mean of the input stands beside the two last states.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 128
    layers: int = 2
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


class BilstmEncoder(Encoder):
    """Bidirectional LSTM; the summary is [time mean of the input, last state forwards, last state backwards].

    Each direction is an LSTM that reads forwards, and the second one gets each clip reversed within its own length.
    That gives the numbers of a packed bidirectional LSTM without packing, which on CPU costs ten times the time.
    """

    def __init__(self, dim: int, options: BilstmOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, 2 * hidden, global_vector=options.global_vector)
        sizes = [dim] + [2 * hidden] * (options.layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(options.dropout)

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Encoder`."""
        rows = masked(rows, inside)
        ahead, turned = self._read(0, rows, lengths)
        for layer in range(1, len(self.forwards)):
            states = torch.cat([ahead, reverse(turned, lengths)], dim=2)  # (batch, rows, 2 hidden)
            ahead, turned = self._read(layer, self.dropout(states), lengths)
        summary = torch.cat([last_valid(ahead, lengths), last_valid(turned, lengths)], dim=1)
        both = torch.cat([ahead, reverse(turned, lengths)], dim=2) if self.wants_states else None
        return summary, both

    def _read(self, layer: int, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States of both directions, (batch, rows, hidden) each in the order in which it reads."""
        turned = reverse(rows, lengths)
        ahead, back = cast(nn.LSTM, self.forwards[layer]), cast(nn.LSTM, self.backwards[layer])
        return lstm_states(ahead, rows), lstm_states(back, turned)


class BilstmHead(Head):
    """Bidirectional LSTM → concat [time mean, both last states] → Linear → Tanh → Linear."""

    Options = BilstmOptions
    Encoder = BilstmEncoder
