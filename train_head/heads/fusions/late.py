"""Late fusion: a whole head per stream, whose values are averaged with learned weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.fusions.fusion import Fusion, Part, Regressor, Widths
from train_head.heads.options import HeadOptions


@dataclass(frozen=True, kw_only=True)
class LateOptions(HeadOptions):
    """Settings of `LateFusion`: none, since the regressors are those of the streams' heads."""


class LateFusion(Fusion):
    """The regressor of its head for each stream → a weighted mean per target.

    The weights are a softmax over the streams that are present; where none is, over the values of the learned vectors.
    """

    Options = LateOptions

    def __init__(self, widths: Widths, targets: int, options: LateOptions, regressor: Regressor) -> None:
        super().__init__(widths, targets, options, regressor)
        self.regressors = nn.ModuleDict({name: regressor(name) for name in widths})
        self.scores = nn.Parameter(torch.zeros(targets, len(widths)))

    def forward(self, parts: Mapping[str, Part]) -> Tensor:
        """See `Fusion`."""
        values = torch.stack([self.regressors[name](part.vectors) for name, part in parts.items()], dim=-1)
        present = torch.stack([part.present for part in parts.values()], dim=-1)
        counted = present | ~present.any(dim=-1, keepdim=True)  # (..., streams)
        weights = self.scores.masked_fill(~counted.unsqueeze(-2), -torch.inf).softmax(dim=-1)
        return (values * weights).sum(dim=-1)
