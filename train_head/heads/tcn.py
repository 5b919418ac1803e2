"""A temporal convolutional network: residual convolutions whose reach doubles from layer to layer."""

from dataclasses import dataclass

from torch import Tensor, nn

from train_head.errors import TrainSettingsError
from train_head.heads.options import HeadOptions, Regressor
from train_head.heads.pooling import masked, time_mean


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
