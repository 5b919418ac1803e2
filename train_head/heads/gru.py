"""A GRU's last state beside the time mean of its input: the paper's head with three gates instead of four."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.options import check_options
from train_head.heads.pooling import last_valid, masked, time_mean
from train_head.heads.recurrent import cudnn_states
from train_head.heads.regressor import build_regressor


@dataclass(frozen=True, kw_only=True)
class GruOptions:
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

    def __post_init__(self) -> None:
        check_options(self)


class GruHead(nn.Module):
    """GRU → concat [time mean of the input, last state] → Linear → Tanh → Linear.

    A GRU in one direction never sees the padding behind a clip before the clip's last state, so padded batches give the
    numbers of a PackedSequence.
    """

    Options = GruOptions

    def __init__(self, dim: int, targets: int, options: GruOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        between = options.dropout if options.layers > 1 else 0.0
        self.gru = nn.GRU(dim, hidden, options.layers, batch_first=True, dropout=between)
        self.global_vector = options.global_vector
        self.regressor = build_regressor(hidden + dim * options.global_vector, targets, options.dropout, options.output)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        states = cudnn_states(self.gru, frames)  # (batch, frames, hidden)
        summary = last_valid(states, lengths)
        if self.global_vector:
            summary = torch.cat([time_mean(frames, lengths), summary], dim=1)
        out: Tensor = self.regressor(summary)
        return out
