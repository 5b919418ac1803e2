"""A multilayer perceptron on the mean, the spread and the maximum over time: a head that ignores order."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions
from train_head.heads.pooling import mean_spread_max
from train_head.heads.regressor import OUTPUTS


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


class MlpEncoder(Encoder):
    """[mean, standard deviation, maximum] over time → (Linear → ReLU → Dropout) per layer."""

    gives_states = False

    def __init__(self, dim: int, options: MlpOptions) -> None:
        hidden = options.hidden or dim
        super().__init__(dim, hidden)
        self.layers = nn.Sequential()
        for before, after in pairwise([3 * dim] + [hidden] * options.layers):
            self.layers.extend([nn.Linear(before, after), nn.ReLU(), nn.Dropout(options.dropout)])

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        """See `Encoder`."""
        return self.layers(mean_spread_max(rows, inside)), None


class MlpHead(Head):
    """[mean, standard deviation, maximum] over time → (Linear → ReLU → Dropout) per layer → Linear."""

    Options = MlpOptions
    Encoder = MlpEncoder

    @staticmethod
    def make_regressor(width: int, targets: int, options: MlpOptions) -> nn.Module:
        """See `Head`: one layer."""
        return nn.Sequential(nn.Linear(width, targets), OUTPUTS[options.output]())
