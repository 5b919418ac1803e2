"""Dropout on a CPU with cheap random numbers.

torch draws a mask on a CPU number by number, about 20 ns each. Here 8 random bits per value come from SFC64 (NumPy),
seeded by torch's generator, so masks follow from `torch.manual_seed`. No mask is kept for the gradient, which draws the
same again. On other devices torch's own dropout is used.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

RESOLUTION = 1 << 8
"""The chance of dropout is rounded to a multiple of one over this: to 0 below half of one, and never to 1."""


class CheapDropout(nn.Dropout):
    """`nn.Dropout` with masks of this file on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        if not self.training or not self.p or x.device.type != "cpu":
            return functional.dropout(x, self.p, self.training)  # in place, torch's is slower and keeps more
        dropped: Tensor = _Dropped.apply(x, self.p, self.inplace)
        return dropped


class Draw:
    """Draws a mask of what is kept, part by part.

    Args:
        chance: of a value to be dropped, below 1.
        seed: of the mask; torch's generator decides by default.

    Attributes:
        scale: factor for the values that are kept.
    """

    def __init__(self, chance: float, seed: int | None = None) -> None:
        dropped = min(round(chance * RESOLUTION), RESOLUTION - 1)
        self.scale = RESOLUTION / (RESOLUTION - dropped)
        self._least = dropped - RESOLUTION // 2
        self._chance, self._seed = chance, int(torch.randint(2**63 - 1, ())) if seed is None else seed
        self._generator = np.random.SFC64(self._seed)

    def again(self) -> "Draw":
        """Return one that draws the same mask from its beginning."""
        return Draw(self._chance, self._seed)

    def kept(self, x: Tensor) -> Tensor:
        """Return the next part of the mask in the shape and type of `x`: 1 with the chance of being kept, else 0."""
        words = self._generator.random_raw(-(-x.numel() // 8))  # 64 bits each
        bits = torch.from_numpy(words.view(np.int8))[: x.numel()].view(x.shape)
        return bits.ge_(self._least).to(x.dtype)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chance: float, inplace: bool) -> Tensor:
        ctx.draw = Draw(chance)
        kept = ctx.draw.kept(x)
        if not inplace:
            return kept.mul_(x).mul_(ctx.draw.scale)
        ctx.mark_dirty(x)
        return x.mul_(kept).mul_(ctx.draw.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.draw.again().kept(grads[0]).mul_(grads[0]).mul_(ctx.draw.scale), None, None
