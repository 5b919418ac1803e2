"""Heads of residual layers over all frames at once: a temporal convolutional network, and a small transformer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.errors import TrainSettingsError
from train_head.heads.options import HeadOptions, Regressor
from train_head.heads.pooling import masked, segment_lengths, segment_means, time_mean, valid


@dataclass(frozen=True, kw_only=True)
class TcnOptions(HeadOptions):
    """Settings of `TcnHead`; with the defaults an output sees 127 frames, 2.5 s at 50 Hz.

    Attributes:
        hidden: channels; 0 takes the input's size.
        layers: residual blocks; block i dilates by 2**i.
        kernel: taps of a convolution, an odd number.
        dropout: in each block, and before the regressor's layers.
        global_vector: whether the time mean of the input stands beside that of the last block.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 128
    layers: int = 6
    kernel: int = 3
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise TrainSettingsError(f"kernel must be odd, so that a frame stays in the middle, got {self.kernel}")


class TcnBlock(nn.Module):
    """x + Linear(Dropout(ReLU(dilated convolution(LayerNorm(x))))), as in MS-TCN (arXiv 1903.01945, figure 3)."""

    def __init__(self, hidden: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.conv = nn.Conv1d(hidden, hidden, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        self.mix = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, hidden) → the same shape; zeros behind a clip act as the padding of the convolution."""
        seen: Tensor = self.conv(masked(self.norm(frames), lengths).transpose(1, 2)).transpose(1, 2)
        out: Tensor = frames + self.mix(self.dropout(seen.relu()))
        return out


class TcnHead(nn.Module):
    """Linear → residual blocks → concat [time means of the input and of the last block] → Linear → Tanh → Linear."""

    Options = TcnOptions

    def __init__(self, dim: int, targets: int, options: TcnOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        self.project = nn.Linear(dim, hidden)
        self.blocks = nn.ModuleList(
            TcnBlock(hidden, options.kernel, 2**i, options.dropout) for i in range(options.layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.regressor = Regressor(dim, hidden, targets, options)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        seen = self.project(frames)  # (batch, frames, hidden)
        for block in self.blocks:
            seen = block(seen, lengths)
        return self.regressor.predict(time_mean(self.norm(seen), lengths), frames, lengths)


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
        if self.hidden % self.heads:
            near = math.ceil(self.hidden / self.heads) * self.heads
            raise TrainSettingsError(
                f"hidden must be a multiple of heads ({self.heads}), such as {near}, got {self.hidden}"
            )


class TransformerHead(nn.Module):
    """Pooled frames → Linear + positions → pre-norm encoder → concat [time means of the input and of it] → regressor.

    Attention never looks at padding, and what padded positions hold is never pooled.
    """

    Options = TransformerOptions

    def __init__(self, dim: int, targets: int, options: TransformerOptions) -> None:
        super().__init__()
        hidden = options.hidden or math.ceil(dim / options.heads) * options.heads
        self.pool_frames = options.pool_frames
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
        self.encoder = nn.TransformerEncoder(layer, options.layers, nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.regressor = Regressor(dim, hidden, targets, options)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        pooled = segment_means(frames, lengths, self.pool_frames)  # (batch, positions, dim)
        positions = segment_lengths(lengths, self.pool_frames)
        projected = self.project(pooled)
        projected = projected + sinusoids(pooled.shape[1], projected.shape[2], projected)
        seen = self.encoder(projected, src_key_padding_mask=~valid(positions, pooled.shape[1]))
        return self.regressor.predict(time_mean(seen, positions), frames, lengths)


def sinusoids(positions: int, width: int, like: Tensor) -> Tensor:
    """(positions, width) sines and cosines in turn (arXiv 1706.03762, section 3.5), in the dtype of `like`."""
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angles = torch.arange(positions, device=like.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].to(like.dtype)
