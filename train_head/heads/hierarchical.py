"""An LSTM over means of segments: the order of a clip's parts, at a fraction of an LSTM's steps."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.options import check_options
from train_head.heads.pooling import last_valid, segment_lengths, segment_means, time_mean
from train_head.heads.recurrent import lstm_states
from train_head.heads.regressor import build_regressor


@dataclass(frozen=True, kw_only=True)
class HierarchicalOptions:
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

    def __post_init__(self) -> None:
        check_options(self)


class HierarchicalHead(nn.Module):
    """Means of segments → LSTM → concat [time mean of the input, last state] → Linear → Tanh → Linear.

    The last segment of a clip averages the frames it has.
    """

    Options = HierarchicalOptions

    def __init__(self, dim: int, targets: int, options: HierarchicalOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        between = options.dropout if options.layers > 1 else 0.0
        self.lstm = nn.LSTM(dim, hidden, options.layers, batch_first=True, dropout=between)
        self.pool_frames, self.global_vector = options.pool_frames, options.global_vector
        width = hidden + dim * options.global_vector
        self.regressor = build_regressor(width, targets, options.dropout, options.output)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        states = lstm_states(self.lstm, segment_means(frames, lengths, self.pool_frames))  # (batch, segments, hidden)
        summary = last_valid(states, segment_lengths(lengths, self.pool_frames))
        if self.global_vector:
            summary = torch.cat([time_mean(frames, lengths), summary], dim=1)
        out: Tensor = self.regressor(summary)
        return out
