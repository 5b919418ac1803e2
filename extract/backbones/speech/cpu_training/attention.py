"""Attention with dropout on a CPU, with gradients, a few heads at a time.

Only the probabilities and their dropout mask (one byte each) are kept for all heads of a batch. Scores, masked
probabilities and their gradients exist for one block of heads at a time. That saves 5 % of the peak memory of a
training step of a large model, and takes no more time than all heads at once (measured, Zen 3, clips of 12 s). With
dropout in bfloat16, torch computes all of attention in float32; here only the scores and the softmax are float32, which
keeps the precision of large scores.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cache.system.machine import bfloat16_unit
from extract.backbones.speech.cpu_training.dropout import Draw, masked
from extract.backbones.speech.cpu_training.products import product
from extract.private import softmax_backward

ATTENTION = "emi_attention"
BLOCK_SCORES = 3 << 19
"""Scores in a block (at least one head): 6 MiB of float32, of which a last-level cache holds several."""


def use_blocks(encoder: Any) -> None:
    """Make an encoder of transformers use this attention on a CPU, in place. Other devices do not change."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if encoder.config.model_type != "wavlm":  # whose attention is torch's own function
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        encoder.set_attn_implementation(ATTENTION)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (batch, heads, frames, size) each → (batch, frames, heads, size).

    In float16, and in bfloat16 on a processor without units for it, torch's attention is used.
    """
    exact = query.dtype in (torch.float32, torch.float64)
    runs_here = exact or (query.dtype == torch.bfloat16 and bfloat16_unit() is not None)
    if dropout == 0 or query.device.type != "cpu" or not runs_here:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options = {"dropout": dropout, "scaling": scaling, **others}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):  # it would round the scores
        attended: Tensor = _Attention.apply(query, key, value, attention_mask, scale, dropout)
    return attended.transpose(1, 2), None


class _Attention(torch.autograd.Function):
    """dropout(softmax(query keyᵀ scale)) value, with the memory layout (batch, frames, heads, size)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, chance: float
    ) -> Tensor:
        assert query.shape[:2] == key.shape[:2] == value.shape[:2], "each head of a query has a key and a value"
        draw = Draw(chance)
        exact = torch.promote_types(query.dtype, torch.float32)  # large scores would lose precision
        weights = query.new_empty(*query.shape[:3], key.shape[2])
        kept = torch.empty(weights.shape, dtype=torch.bool)
        out = _by_frames(query, value.shape[3])
        for here in _blocks(weights.shape):
            scores = product(query[here].to(exact) * scale, key[here].to(exact).mT)
            if mask is not None and mask.dtype == torch.bool:
                scores.masked_fill_(~mask.expand(weights.shape)[here], -torch.inf)
            elif mask is not None:
                scores.add_(mask.expand(weights.shape)[here])
            if exact == query.dtype:
                torch.softmax(scores, dim=-1, out=weights[here])
            else:
                weights[here] = torch.softmax(scores, dim=-1)
            attended = masked(weights[here], draw.fill(kept[here]))
            product(attended, value[here], out=out[here])
        ctx.scale, ctx.kept_scale = scale, draw.scale
        ctx.save_for_backward(query, key, value, weights, kept)
        return out.mul_(draw.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        of_query, of_key, of_value = (_by_frames(x, x.shape[3]) for x in (query, key, value))
        for here in _blocks(weights.shape):
            grad = grads[0][here] * ctx.kept_scale
            attended = masked(weights[here], kept[here])
            product(attended.mT, grad, out=of_value[here])
            of_weights = product(grad, value[here].mT, out=attended)  # reuses its memory
            masked(of_weights, kept[here], out=of_weights)
            of_scores = softmax_backward(of_weights, weights[here])
            product(of_scores, key[here], out=of_query[here])
            product(of_scores.mT, query[here], out=of_key[here])
        return of_query.mul_(ctx.scale), of_key.mul_(ctx.scale), of_value, None, None, None


def _by_frames(x: Tensor, size: int) -> Tensor:
    """Allocate (batch, heads, frames, size) with the memory layout (batch, frames, heads, size) of the other layers."""
    batch, heads, frames, _ = x.shape
    return x.new_empty(batch, frames, heads, size).transpose(1, 2)


def _blocks(shape: torch.Size) -> Iterator[tuple[int, slice]]:
    """Yield the index of a clip and a slice of its heads."""
    batch, heads, queries, keys = shape
    step = max(1, BLOCK_SCORES // max(1, queries * keys))
    for clip in range(batch):
        for head in range(0, heads, step):
            yield clip, slice(head, head + step)
