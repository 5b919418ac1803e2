"""A temporal convolutional network: residual convolutions whose reach doubles from layer to layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from train_head.errors import TrainSettingsError
from train_head.heads.autocast import product_type
from train_head.heads.dropout import CheapDropout
from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions
from train_head.heads.pooling import masked, time_mean


@dataclass(frozen=True, kw_only=True)
class TcnOptions(HeadOptions):
    """Settings of `TcnHead`; with the defaults an output sees 127 frames, 2.5 s at 50 Hz.

    Attributes:
        block: "residual" or "weightnorm", see `TcnBlock` and `WeightNormBlock`.
        hidden: channels; 0 takes the input's size.
        layers: residual blocks; block i dilates by 2**i.
        kernel: taps of a convolution, an odd number where it is not causal.
        branches: of a weight-normed block, pairs of convolutions side by side, with kernels `kernel`, `kernel` + 2, …
        causal: whether a frame sees only those up to it.
        dropout: in each block, and before the regressor's layers.
        global_vector: whether the time mean of the input stands beside that of the last block.
        output: "linear", "tanh" or "sigmoid".
    """

    block: str = "residual"
    hidden: int = 128
    layers: int = 6
    kernel: int = 3
    branches: int = 1
    causal: bool = False
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0 and not self.causal:
            raise TrainSettingsError(f"kernel must be odd, so that a frame stays in the middle, got {self.kernel}")
        if self.branches > 1 and self.block != "weightnorm":
            raise TrainSettingsError(f'branches go with block = "weightnorm", and the block is {self.block!r}')


def convolved(rows: Tensor, conv: nn.Conv1d, padding: tuple[int, int]) -> Tensor:
    """Apply a convolution over rows that lie as they are used elsewhere, for which `Conv1d` would transpose them.

    Args:
        rows: (batch, rows, dim).
        conv: from dim to hidden channels.
        padding: rows of zeros before and after.

    Returns:
        (batch, rows, hidden).
    """
    channels = functional.pad(rows, (0, 0, *padding)).transpose(1, 2).unsqueeze(2)  # channels last, one row high
    found = functional.conv2d(channels, conv.weight.unsqueeze(2), conv.bias, dilation=(1, *conv.dilation))
    return found.squeeze(2).transpose(1, 2)


class TcnBlock(nn.Module):
    """x + Linear(Dropout(ReLU(dilated convolution(LayerNorm(x))))), as in MS-TCN (arXiv 1903.01945, figure 3)."""

    def __init__(self, hidden: int, kernel: int, dilation: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        before = dilation * (kernel - 1) if causal else dilation * (kernel // 2)
        self.padding = (before, dilation * (kernel - 1) - before)
        self.norm = nn.LayerNorm(hidden)
        self.conv = nn.Conv1d(hidden, hidden, kernel, dilation=dilation)
        self.mix = nn.Linear(hidden, hidden)
        self.dropout = CheapDropout(dropout)

    def forward(self, frames: Tensor, inside: Tensor) -> Tensor:
        """(batch, frames, hidden) → the same shape; zeros outside the mask act as the padding of the convolution."""
        seen = convolved(masked(self.norm(frames), inside), self.conv, self.padding)
        out: Tensor = frames + self.mix(self.dropout(seen.relu()))
        return out


class CausalConv(nn.Module):
    """A weight-normed dilated convolution over rows (arXiv 1602.07868), causal or with each row in the middle."""

    def __init__(self, dim: int, hidden: int, kernel: int, dilation: int, *, causal: bool) -> None:
        super().__init__()
        before = dilation * (kernel - 1) if causal else dilation * (kernel // 2)
        self.padding = (before, dilation * (kernel - 1) - before)
        self.conv = weight_norm(nn.Conv1d(dim, hidden, kernel, dilation=dilation))

    def forward(self, rows: Tensor, inside: Tensor) -> Tensor:
        """(batch, rows, dim) → (batch, rows, hidden); rows outside the mask count as zeros."""
        return convolved(masked(rows, inside), cast(nn.Conv1d, self.conv), self.padding)


class WeightNormBlock(nn.Module):
    """LeakyReLU(residual + Dropout(LeakyReLU(conv(Dropout(LeakyReLU(conv(x))))))), as in arXiv 1803.01271, figure 1.

    The residual is x, or a linear map of it where the sizes differ. Several branches are averaged before it is added.

    Args:
        dim: size of a row.
        hidden: size of a state.
        kernels: of the convolutions of each branch.
        dilation: of all convolutions.
        dropout: behind each convolution.
        causal: whether a row sees only those up to it.
    """

    def __init__(
        self, dim: int, hidden: int, kernels: Sequence[int], dilation: int, dropout: float, *, causal: bool
    ) -> None:
        super().__init__()
        first = [CausalConv(dim, hidden, k, dilation, causal=causal) for k in kernels]
        second = [CausalConv(hidden, hidden, k, dilation, causal=causal) for k in kernels]
        self.first, self.second = nn.ModuleList(first), nn.ModuleList(second)
        self.residual = nn.Identity() if dim == hidden else nn.Linear(dim, hidden)
        self.activation = nn.LeakyReLU()
        self.dropout = CheapDropout(dropout, inplace=True)
        before, after = first[-1].padding
        self.padding = (2 * before, 2 * after)

    def forward(self, rows: Tensor, inside: Tensor) -> Tensor:
        """(batch, rows, dim) → (batch, rows, hidden); rows outside the mask count as zeros."""
        found = []
        for first, second in zip(self.first, self.second, strict=True):
            states = self.dropout(self.activation(first(rows, inside)))
            found.append(self.dropout(self.activation(second(states, inside))))
        mean = found[0] if len(found) == 1 else torch.stack(found).mean(0)
        out: Tensor = self.activation(self.residual(rows) + mean)
        return out


class TcnEncoder(Encoder):
    """Linear → residual blocks → LayerNorm, or weight-normed blocks; the summary is the time mean of the states."""

    def __init__(self, dim: int, options: TcnOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden, global_vector=options.global_vector)
        if options.block == "residual":
            self.project: nn.Module = nn.Linear(dim, hidden)
            blocks: list[nn.Module] = [
                TcnBlock(hidden, options.kernel, 2**i, options.dropout, causal=options.causal)
                for i in range(options.layers)
            ]
            self.norm: nn.Module = nn.LayerNorm(hidden)
        else:
            self.project = nn.Identity()
            kernels = [options.kernel + 2 * i for i in range(options.branches)]
            blocks = [
                WeightNormBlock(hidden if i else dim, hidden, kernels, 2**i, options.dropout, causal=options.causal)
                for i in range(options.layers)
            ]
            self.norm = nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        before, after = (sum(sides) for sides in zip(*(block.padding for block in self.blocks), strict=True))
        self.reach = (int(before), int(after))

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `Encoder`; with autocast, residuals have its type as well, which halves what is kept."""
        states = self.project(masked(rows, inside).to(product_type(rows)).contiguous())  # (batch, rows, hidden)
        for block in self.blocks:
            states = block(states, inside)
        states = self.norm(states)
        return time_mean(states, inside), states


class TcnHead(Head):
    """Linear → residual blocks → concat [time means of the input and of the last block] → Linear → Tanh → Linear."""

    Options = TcnOptions
    Encoder = TcnEncoder
