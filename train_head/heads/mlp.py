"""A multilayer perceptron on the mean, the spread and the maximum over time: a head that ignores order."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from train_head.heads.options import OUTPUTS, HeadOptions
from train_head.heads.pooling import mean_spread_max


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
