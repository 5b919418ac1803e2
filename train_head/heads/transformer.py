"""A small transformer encoder over frames that were averaged into fewer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions, check_multiple
from train_head.heads.pooling import segment_means, time_mean
from train_head.heads.self_attention import with_cheap_dropout


@dataclass(frozen=True, kw_only=True)
class TransformerOptions(HeadOptions):
    """Settings of `TransformerHead`.

    Attributes:
        hidden: size of a position in the encoder, a multiple of `heads`; 0 takes the input's size, rounded up to one.
        layers: encoder layers.
        heads: attention heads per layer.
        width: size of the feed-forward layers; 0 takes four times `hidden`.
        pool_frames: frames averaged into one position; 5 make 12 s at 50 Hz 120 positions instead of 600.
        dropout: in the encoder layers, and before the regressor's.
        global_vector: whether the time mean of the input stands beside that of the encoder.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    width: int = 0
    pool_frames: int = 5
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("hidden", self.hidden, self.heads)


class TransformerEncoder(Encoder):
    """Pooled rows → Linear + positions → pre-norm layers; the summary is the time means of the input and of these.

    Attention never looks at padding, and what padded positions hold is never pooled.
    """

    def __init__(self, dim: int, options: TransformerOptions) -> None:
        hidden = options.hidden or math.ceil(dim / options.heads) * options.heads
        super().__init__(dim, hidden, global_vector=options.global_vector)
        self.stride = options.pool_frames
        self.project = nn.Linear(dim, hidden)
        layer = nn.TransformerEncoderLayer(
            hidden,
            options.heads,
            options.width or 4 * hidden,
            options.dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(hidden)
        self.encoder = nn.TransformerEncoder(
            with_cheap_dropout(layer), options.layers, norm, enable_nested_tensor=False
        )

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `Encoder`."""
        pooled, present = segment_means(rows, inside, self.stride)  # (batch, positions, dim)
        projected = self.project(pooled)
        projected = projected + sinusoids(pooled.shape[1], projected.shape[2], projected)
        ignored = ~present
        ignored[:, 0] = False  # of a clip without a valid row, which attention cannot be taken over
        states = self.encoder(projected, src_key_padding_mask=ignored)
        return time_mean(states, present), states


class TransformerHead(Head):
    """Pooled rows → transformer → concat [time means of the input and of the states] → Linear → Tanh → Linear."""

    Options = TransformerOptions
    Encoder = TransformerEncoder


def sinusoids(positions: int, width: int, like: Tensor) -> Tensor:
    """(positions, width) sines and cosines in turn (arXiv 1706.03762, section 3.5), in the dtype of `like`."""
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angles = torch.arange(positions, device=like.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].to(like.dtype)
