"""A temporal convolutional network: residual convolutions whose reach doubles from layer to layer."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from train_head.errors import TrainSettingsError
from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions
from train_head.heads.pooling import masked, time_mean


@dataclass(frozen=True, kw_only=True)
class TcnOptions(HeadOptions):
    """Settings of `TcnHead`; with the defaults an output sees 127 frames, 2.5 s at 50 Hz.

    Attributes:
        hidden: channels; 0 takes the input's size.
        layers: residual blocks; block i dilates by 2**i.
        kernel: taps of a convolution, an odd number where it is not causal.
        causal: whether a frame sees only those up to it.
        dropout: in each block, and before the regressor's layers.
        global_vector: whether the time mean of the input stands beside that of the last block.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 128
    layers: int = 6
    kernel: int = 3
    causal: bool = False
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0 and not self.causal:
            raise TrainSettingsError(f"kernel must be odd, so that a frame stays in the middle, got {self.kernel}")


class TcnBlock(nn.Module):
    """x + Linear(Dropout(ReLU(dilated convolution(LayerNorm(x))))), as in MS-TCN (arXiv 1903.01945, figure 3)."""

    def __init__(self, hidden: int, kernel: int, dilation: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        before = dilation * (kernel - 1) if causal else dilation * (kernel // 2)
        self.padding = (before, dilation * (kernel - 1) - before)
        self.norm = nn.LayerNorm(hidden)
        self.conv = nn.Conv1d(hidden, hidden, kernel, dilation=dilation, padding=0 if causal else before)
        self.causal = causal
        self.mix = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, inside: Tensor) -> Tensor:
        """(batch, frames, hidden) → the same shape; zeros outside the mask act as the padding of the convolution."""
        channels = masked(self.norm(frames), inside).transpose(1, 2)
        seen: Tensor = self.conv(functional.pad(channels, self.padding) if self.causal else channels).transpose(1, 2)
        out: Tensor = frames + self.mix(self.dropout(seen.relu()))
        return out


class TcnEncoder(Encoder):
    """Linear → residual blocks; the summary is the time means of the input and of the last block."""

    def __init__(self, dim: int, options: TcnOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden, global_vector=options.global_vector)
        self.project = nn.Linear(dim, hidden)
        self.blocks = nn.ModuleList(
            TcnBlock(hidden, options.kernel, 2**i, options.dropout, causal=options.causal)
            for i in range(options.layers)
        )
        self.norm = nn.LayerNorm(hidden)
        before, after = (sum(sides) for sides in zip(*(block.padding for block in self.blocks), strict=True))
        self.reach = (int(before), int(after))

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `Encoder`."""
        states = self.project(masked(rows, inside))  # (batch, rows, hidden)
        for block in self.blocks:
            states = block(states, inside)
        states = self.norm(states)
        return time_mean(states, inside), states


class TcnHead(Head):
    """Linear → residual blocks → concat [time means of the input and of the last block] → Linear → Tanh → Linear."""

    Options = TcnOptions
    Encoder = TcnEncoder
