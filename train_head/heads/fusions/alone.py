"""No fusion: one stream."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from train_head.heads.fusions.fusion import Fusion, Part, Regressor, Widths


class Alone(Fusion):
    """The regressor of its head on the vectors of the only stream."""

    def __init__(self, widths: Widths, targets: int, options: Any, regressor: Regressor) -> None:
        super().__init__(widths, targets, options, regressor)
        (name,) = widths
        self.regressor = regressor(name)

    def forward(self, parts: Mapping[str, Part]) -> Tensor:
        """See `Fusion`."""
        (part,) = parts.values()
        out: Tensor = self.regressor(part.vectors)
        return out
