"""Dropout on a CPU with cheap random numbers, and self-attention with it.

torch draws a mask on a CPU number by number, about 20 ns each. Here 16 random bits per value come from SFC64 (NumPy),
seeded by torch's generator, so masks follow from `torch.manual_seed`. No mask is kept for the gradient, which draws the
same again. Attention does not keep its weights either: they are computed again from the logarithms of their sums, a
block at a time that stays in the processor's cache (arXiv 2205.14135). On other devices torch's own layers are used.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

RESOLUTION = 1 << 16
"""The chance of dropout is rounded to a multiple of one over this."""
BLOCK_SCORES = 3 << 18
"""Scores that attention computes at a time, at least those of one head of a clip: 3 MiB of float32."""


class CheapDropout(nn.Dropout):
    """`nn.Dropout` with masks of this file on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        dropped: Tensor = _Dropped.apply(x, self.p)
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
        words = self._generator.random_raw(-(-x.numel() // 4))  # 64 bits each
        bits = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
        return bits.ge_(self._least).to(x.dtype)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chance: float) -> Tensor:
        ctx.draw = Draw(chance)
        return ctx.draw.kept(x).mul_(x).mul_(ctx.draw.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.draw.again().kept(grads[0]).mul_(grads[0]).mul_(ctx.draw.scale), None


def with_cheap_dropout(layer: nn.TransformerEncoderLayer) -> nn.TransformerEncoderLayer:
    """Give a layer these dropouts and attention, with the weights that it has."""
    old = layer.self_attn
    own = CheapAttention(old.embed_dim, old.num_heads, old.dropout, batch_first=True, device="meta")
    own.load_state_dict(old.state_dict(), assign=True)
    layer.self_attn = own
    for name in ("dropout", "dropout1", "dropout2"):
        setattr(layer, name, CheapDropout(layer.dropout.p))
    return layer


class CheapAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of (batch, rows, width) with itself, trained with dropout block by block on a CPU."""

    def forward(self, query: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`; without weights while it is trained on a CPU."""
        if not self.training or not self.dropout or query.device.type != "cpu":
            found: tuple[Tensor, Tensor | None] = super().forward(query, *others, **options)
            return found
        bias = options.get("key_padding_mask")
        if bias is not None:
            bias = torch.zeros(bias.shape).masked_fill_(bias, -torch.inf) if bias.dtype == torch.bool else bias
            bias = bias if bias.any() else None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        inputs = (x.to(dtype) for x in (query, self.in_proj_weight, self.in_proj_bias))
        with torch.autocast("cpu", enabled=False):  # it would round the scores
            attended: Tensor = _Attention.apply(*inputs, bias, self.num_heads, self.dropout)
        return self.out_proj(attended), None


class _Attention(torch.autograd.Function):
    """dropout(softmax(query keyᵀ / √size + bias)) value, where one linear layer on `x` gives query, key and value.

    `x` and the output are (batch, rows, width). The bias is None or (batch, rows), −∞ for keys that are never attended
    to. The layer's products have the type of its weights, all others float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, heads: int, chance: float
    ) -> Tensor:
        query, key, value = _by_head(functional.linear(x, weight, offset), 3, heads)
        draw, attended, logs = Draw(chance), torch.empty_like(query), torch.empty_like(query[..., :1])
        for block in _blocks(query):
            scores = _scores(query, key, bias, block)
            highest = scores.amax(dim=2, keepdim=True)
            total = scores.sub_(highest).exp_().sum(dim=2, keepdim=True)
            torch.add(highest, total.log(), out=logs[block])
            kept = draw.kept(scores).mul_(scores)
            torch.bmm(kept, value[block], out=attended[block]).mul_(draw.scale / total)
        ctx.draw, ctx.heads = draw, heads
        out = _by_row(attended[None], x)
        ctx.save_for_backward(x, weight, offset, bias, logs, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, offset, bias, logs, out = ctx.saved_tensors
        query, key, value = _by_head(functional.linear(x, weight, offset), 3, ctx.heads)
        (grad,), (attended,) = _by_head(grads[0], 1, ctx.heads), _by_head(out, 1, ctx.heads)
        draw, found = ctx.draw.again(), query.new_empty(3, *query.shape)
        mean = attended.mul_(grad).sum(dim=2, keepdim=True)
        grad.mul_(draw.scale)
        for block in _blocks(query):
            weights = _scores(query, key, bias, block).sub_(logs[block]).exp_()
            kept = draw.kept(weights)
            of_scores = torch.bmm(grad[block], value[block].mT).mul_(kept).sub_(mean[block]).mul_(weights)
            torch.bmm(of_scores, key[block], out=found[0, block])
            found[1, block] = torch.bmm(query[block].mT, of_scores).mT
            found[2, block] = torch.bmm(grad[block].mT, kept.mul_(weights)).mT
        found[:2] *= query.shape[2] ** -0.5
        of_parts = _by_row(found, x).flatten(0, 1)
        return (of_parts @ weight).view(x.shape), of_parts.mT @ x.flatten(0, 1), of_parts.sum(dim=0), None, None, None


def _by_head(x: Tensor, parts: int, heads: int) -> Tensor:
    """(batch, rows, parts * heads * size) → (parts, batch * heads, rows, size) in memory of its own."""
    exact = torch.promote_types(x.dtype, torch.float32)
    split = x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    return split.to(exact, copy=True, memory_format=torch.contiguous_format).flatten(1, 2)


def _by_row(x: Tensor, like: Tensor) -> Tensor:
    """(parts, batch * heads, rows, size) → (batch, rows, parts * heads * size) in the type of `like`."""
    return x.unflatten(1, (len(like), -1)).permute(1, 3, 0, 2, 4).to(like.dtype).flatten(2)


def _blocks(query: Tensor) -> Iterator[slice]:
    """Yield which heads of which clips come next."""
    step = max(1, BLOCK_SCORES // query.shape[1] ** 2)
    return (slice(first, first + step) for first in range(0, len(query), step))


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, block: slice) -> Tensor:
    """(heads of the block, rows, rows) float32 at least; one clip's heads follow each other in the others."""
    scores = torch.bmm(query[block] * query.shape[2] ** -0.5, key[block].mT)
    if bias is not None:
        scores += bias.repeat_interleave(len(query) // len(bias), dim=0)[block, None].to(scores.dtype)
    return scores
