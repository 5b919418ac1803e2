"""Self-attention with dropout on a CPU, for the layers of transformers.

Only the input, the output and the logarithms of the softmax's sums are kept for the gradient: queries, keys, values and
weights are computed again, a block at a time that stays in the processor's cache (arXiv 2205.14135), and so are the
masks. On other devices, without dropout, and in evaluation, torch's own attention is used.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from train_head.heads.autocast import product_type
from train_head.heads.dropout import CheapDropout, Draw

BLOCK = 3 << 18
"""Numbers that attention computes at a time: queries, keys and values of at least one clip, or scores of at least one
head. 3 MiB in float32."""


def with_cheap_dropout(layer: nn.TransformerEncoderLayer) -> nn.TransformerEncoderLayer:
    """Give a layer these dropouts and attention, with the weights that it has."""
    old = layer.self_attn
    own = CheapAttention(old.embed_dim, old.num_heads, old.dropout, batch_first=True, device="meta")
    own.load_state_dict(old.state_dict(), assign=True)
    layer.self_attn = own
    layer.dropout = CheapDropout(layer.dropout.p)
    layer.dropout1, layer.dropout2 = (CheapDropout(layer.dropout.p, inplace=True) for _ in range(2))
    return layer


class CheapAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of (batch, rows, width) with itself, trained with dropout block by block on a CPU."""

    def forward(self, query: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`; while it is trained on a CPU, without weights and without `attn_mask`."""
        if not self.training or not self.dropout or query.device.type != "cpu":
            found: tuple[Tensor, Tensor | None] = super().forward(query, *others, **options)
            return found
        bias = options.get("key_padding_mask")
        if bias is not None:
            bias = torch.zeros(bias.shape).masked_fill_(bias, -torch.inf) if bias.dtype == torch.bool else bias
            bias = bias if bias.any() else None
        inputs = (x.to(product_type(query)) for x in (query, self.in_proj_weight, self.in_proj_bias))
        with torch.autocast("cpu", enabled=False):  # it would round the scores
            attended: Tensor = _Attention.apply(*inputs, bias, self.num_heads, self.dropout)
        return self.out_proj(attended), None


class _Attention(torch.autograd.Function):
    """dropout(softmax(query keyᵀ / √size + bias)) value, where one linear layer on `x` gives query, key and value.

    `x` and the output are (batch, rows, width). The bias is None or (batch, rows), −∞ for keys that are never attended
    to. The layer's products have the type of its weights, all others float32 at least.

    The gradient of scores is weights (mask grad valueᵀ - Σ grad out), the sum over a row's size; a mask holds 0 or
    1 / (1 - chance).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, heads: int, chance: float
    ) -> Tensor:
        draw, exact = Draw(chance), torch.promote_types(x.dtype, torch.float32)
        out, logs = torch.empty_like(x), x.new_empty(len(x), heads, x.shape[1], 1, dtype=exact)
        for clips in _blocks(len(x), x.shape[1] * len(weight)):
            query, key, value = _by_head(functional.linear(x[clips], weight, offset), 3, heads)
            added = None if bias is None else bias[clips].repeat_interleave(heads, dim=0)[:, None].to(exact)
            attended, log = torch.empty_like(query), logs[clips].flatten(0, 1)
            for block in _blocks(len(query), x.shape[1] ** 2):
                scores = _scores(query, key, added, block)
                highest = scores.amax(dim=2, keepdim=True)
                total = scores.sub_(highest).exp_().sum(dim=2, keepdim=True)
                torch.add(highest, total.log(), out=log[block])
                kept = draw.kept(scores).mul_(scores)
                torch.bmm(kept, value[block], out=attended[block]).mul_(draw.scale / total)
            out[clips] = _by_row(attended[None], heads)
        ctx.draw, ctx.heads = draw, heads
        ctx.save_for_backward(x, weight, offset, bias, logs, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, offset, bias, logs, out = ctx.saved_tensors
        heads, draw, exact = ctx.heads, ctx.draw.again(), logs.dtype
        of_x = x.new_empty(x.shape)
        of_weight, of_offset = (torch.zeros(part.shape, dtype=exact) for part in (weight, offset))
        for clips in _blocks(len(x), x.shape[1] * len(weight)):
            query, key, value = _by_head(functional.linear(x[clips], weight, offset), 3, heads)
            (grad,), (attended,) = _by_head(grads[0][clips], 1, heads), _by_head(out[clips], 1, heads)
            added = None if bias is None else bias[clips].repeat_interleave(heads, dim=0)[:, None].to(exact)
            log, expected = logs[clips].flatten(0, 1), attended.mul_(grad).sum(dim=2, keepdim=True)
            grad.mul_(draw.scale)
            found = query.new_empty(3, *query.shape)
            for block in _blocks(len(query), x.shape[1] ** 2):
                weights = _scores(query, key, added, block).sub_(log[block]).exp_()
                kept = draw.kept(weights)
                of_scores = torch.bmm(grad[block], value[block].mT).mul_(kept).sub_(expected[block]).mul_(weights)
                torch.bmm(of_scores, key[block], out=found[0, block])
                found[1, block] = torch.bmm(query[block].mT, of_scores).mT
                found[2, block] = torch.bmm(grad[block].mT, kept.mul_(weights)).mT
            found[:2] *= query.shape[2] ** -0.5
            of_parts = _by_row(found, heads).to(x.dtype)
            torch.matmul(of_parts, weight, out=of_x[clips])
            of_weight += of_parts.flatten(0, 1).mT @ x[clips].flatten(0, 1)
            of_offset += of_parts.sum(dim=(0, 1))
        return of_x, of_weight.to(weight.dtype), of_offset.to(offset.dtype), None, None, None


def _by_head(x: Tensor, parts: int, heads: int) -> Tensor:
    """(clips, rows, parts * heads * size) → (parts, clips * heads, rows, size) float32 at least, in its own memory."""
    exact = torch.promote_types(x.dtype, torch.float32)
    split = x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    return split.to(exact, copy=True, memory_format=torch.contiguous_format).flatten(1, 2)


def _by_row(x: Tensor, heads: int) -> Tensor:
    """(parts, clips * heads, rows, size) → (clips, rows, parts * heads * size)."""
    return x.unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4).flatten(2)


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Yield which come next, of so many with so many numbers each."""
    step = max(1, BLOCK // size)
    return (slice(first, first + step) for first in range(0, count, step))


def _scores(query: Tensor, key: Tensor, added: Tensor | None, block: slice) -> Tensor:
    """(heads of the block, rows, rows) scores."""
    scores = torch.bmm(query[block] * query.shape[2] ** -0.5, key[block].mT)
    return scores if added is None else scores.add_(added[block])
