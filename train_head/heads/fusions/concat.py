"""Plain concatenation: on mimicry intensity no published fusion is clearly better."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train_head.heads.fusions.fusion import Fusion, Part, Regressor, Widths
from train_head.heads.options import HeadOptions
from train_head.heads.regressor import two_layers


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

    def __init__(self, widths: Widths, targets: int, options: ConcatOptions, regressor: Regressor) -> None:
        super().__init__(widths, targets, options, regressor)
        width = sum(widths.values())
        self.regressor = two_layers(
            width, options.hidden or width, targets, options.dropout, options.output, options.activation
        )

    def forward(self, parts: Mapping[str, Part]) -> Tensor:
        """See `Fusion`."""
        out: Tensor = self.regressor(torch.cat([part.vectors for part in parts.values()], dim=-1))
        return out
