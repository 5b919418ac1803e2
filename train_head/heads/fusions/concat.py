"""Plain concatenation: on mimicry intensity no published fusion is clearly better."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.fusions.fusion import Fusion
from train_head.heads.options import HeadOptions
from train_head.heads.regressor import ACTIVATIONS, OUTPUTS


@dataclass(frozen=True, kw_only=True)
class ConcatOptions(HeadOptions):
    """Settings of `ConcatFusion`.

    Attributes:
        hidden: size of the layer behind the joined vectors; 0 takes their size.
        activation: "tanh", "relu" or "gelu", behind that layer.
        dropout: before both layers.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    activation: str = "tanh"
    dropout: float = 0.1
    output: str = "linear"


class ConcatFusion(Fusion):
    """Vectors side by side → Linear → activation → Linear."""

    Options = ConcatOptions

    def __init__(self, widths: Mapping[str, int], targets: int, options: ConcatOptions) -> None:
        super().__init__(widths, targets, options)
        self.names, width = tuple(widths), sum(widths.values())
        self.regressor = nn.Sequential(
            nn.Dropout(options.dropout),
            nn.Linear(width, options.hidden or width),
            ACTIVATIONS[options.activation](),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden or width, targets),
            OUTPUTS[options.output](),
        )

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """See `Fusion`."""
        out: Tensor = self.regressor(torch.cat([vectors[name] for name in self.names], dim=-1))
        return out
