"""Heads that ignore the order of a clip's frames: a multilayer perceptron on statistics, and attention pooling."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from train_head.heads.options import OUTPUTS, HeadOptions
from train_head.heads.pooling import masked, mean_spread_max, time_mean, valid


@dataclass(frozen=True, kw_only=True)
class MlpOptions(HeadOptions):
    """Settings of `MlpHead`.

    Attributes:
        hidden: size of the hidden layers; 0 takes the input's size.
        layers: hidden layers.
        dropout: behind each hidden layer.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    layers: int = 1
    dropout: float = 0.1
    output: str = "linear"


class MlpHead(nn.Module):
    """[mean, standard deviation, maximum] over time → (Linear → ReLU → Dropout) per layer → Linear."""

    Options = MlpOptions

    def __init__(self, dim: int, targets: int, options: MlpOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        self.layers = nn.Sequential()
        for before, after in pairwise([3 * dim] + [hidden] * options.layers):
            self.layers.extend([nn.Linear(before, after), nn.ReLU(), nn.Dropout(options.dropout)])
        self.regressor = nn.Sequential(nn.Linear(hidden, targets), OUTPUTS[options.output]())

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        out: Tensor = self.regressor(self.layers(mean_spread_max(frames, lengths)))
        return out


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(HeadOptions):
    """Settings of `AttentionHead`.

    Attributes:
        hidden: size of the layer behind the pooling; 0 takes the input's size.
        heads: queries, each of which pools the clip in its own way.
        dropout: before the two layers behind the pooling.
        global_vector: whether the time mean of the input stands beside what the queries pooled.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    heads: int = 4
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


class AttentionHead(nn.Module):
    """softmax over time of frame · query / sqrt(dim), weighted mean per query → Linear → Tanh → Linear.

    With learned queries, linear keys and values add nothing but weights: a key matrix folds into the query, and a value
    matrix into the layer behind the pooling, where it is applied per clip instead of per frame.
    """

    Options = AttentionOptions

    def __init__(self, dim: int, targets: int, options: AttentionOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        self.queries = nn.Linear(dim, options.heads, bias=False)
        self.global_vector = options.global_vector
        self.regressor = nn.Sequential(
            nn.Dropout(options.dropout),
            nn.Linear((options.heads + options.global_vector) * dim, hidden),
            nn.Tanh(),
            nn.Dropout(options.dropout),
            nn.Linear(hidden, targets),
            OUTPUTS[options.output](),
        )

    def weights(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, heads) float32: how much each frame counts; sums to 1 over a clip, 0 behind its end."""
        scores = self.queries(frames).float() * frames.shape[2] ** -0.5
        return scores.masked_fill(~valid(lengths, frames.shape[1]).unsqueeze(-1), -torch.inf).softmax(dim=1)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        summary = (self.weights(frames, lengths).transpose(1, 2) @ frames).flatten(1)  # (batch, heads * dim)
        if self.global_vector:
            summary = torch.cat([time_mean(frames, lengths).to(summary.dtype), summary], dim=1)
        out: Tensor = self.regressor(summary)
        return out
