"""An LSTM that reads each clip from both ends."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from train_head.heads.options import check_options
from train_head.heads.pooling import last_valid, masked, reverse, time_mean
from train_head.heads.recurrent import lstm_states
from train_head.heads.regressor import build_regressor


@dataclass(frozen=True, kw_only=True)
class BilstmOptions:
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

    def __post_init__(self) -> None:
        check_options(self)


class BilstmHead(nn.Module):
    """Bidirectional LSTM → concat [time mean, last state forwards, last state backwards] → Linear → Tanh → Linear.

    Each direction is an LSTM that reads forwards, and the second one gets each clip reversed within its own length.
    That gives the numbers of a packed bidirectional LSTM without packing, which on CPU costs ten times the time.
    """

    Options = BilstmOptions

    def __init__(self, dim: int, targets: int, options: BilstmOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        sizes = [dim] + [2 * hidden] * (options.layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(options.dropout)
        self.global_vector = options.global_vector
        width = 2 * hidden + dim * options.global_vector
        self.regressor = build_regressor(width, targets, options.dropout, options.output)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        ahead, turned = self._read(0, frames, lengths)
        for layer in range(1, len(self.forwards)):
            states = torch.cat([ahead, reverse(turned, lengths)], dim=2)  # (batch, frames, 2 hidden)
            ahead, turned = self._read(layer, self.dropout(states), lengths)
        summary = [last_valid(ahead, lengths), last_valid(turned, lengths)]
        if self.global_vector:
            summary.insert(0, time_mean(frames, lengths))
        out: Tensor = self.regressor(torch.cat(summary, dim=1))
        return out

    def _read(self, layer: int, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States of both directions, (batch, frames, hidden) each in the order in which it reads."""
        turned = reverse(frames, lengths)
        ahead, back = cast(nn.LSTM, self.forwards[layer]), cast(nn.LSTM, self.backwards[layer])
        return lstm_states(ahead, frames), lstm_states(back, turned)
