"""Dropout on a CPU whose random numbers cost little, for backbones that are trained.

Without MKL's generator, which only Intel's processors get, torch draws a mask in one thread, number by number, and
keeps it as float32: a tenth of a training step of a large model (measured on Zen 3, clips of 12 s). Here 16 random bits
decide for each number, drawn from SFC64 (Doty-Humphrey's generator, in NumPy) whose seed torch's generator gives. So
what is dropped still follows from `torch.manual_seed` alone, and activation checkpointing draws the same again. Masks
are kept as bytes, and attention keeps its probabilities once, not before and after dropout.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extract.backbones.cpu_training.products import product

ATTENTION = "emi_cheap_dropout"
_RESOLUTION = 1 << 16


def use_cheap_dropout(encoder: Any) -> None:
    """Let an encoder of the transformers library drop out this way on a CPU, in place; elsewhere nothing changes."""
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, CheapDropout(child.p))
    if encoder.config.model_type != "wavlm":  # whose attention is torch's own function
        _register()
        encoder.set_attn_implementation(ATTENTION)


class CheapDropout(nn.Dropout):
    """`nn.Dropout`, with the mask of this file on a CPU; the chance is rounded to 1/65536."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        out: Tensor = _Dropped.apply(x, self.p)
        return out


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

    Below float32 it is torch's, which computes the probabilities in float32.
    """
    if dropout == 0 or query.device.type != "cpu" or query.dtype not in (torch.float32, torch.float64):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Tensor = _Attention.apply(query, key, value, attention_mask, scale, dropout)
    return attended.transpose(1, 2).contiguous(), None


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chance: float) -> Tensor:
        kept, ctx.scale = _kept(x.shape, chance)
        ctx.save_for_backward(kept)
        return torch.where(kept, x, 0.0).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.where(kept, grads[0], 0.0).mul_(ctx.scale), None


class _Attention(torch.autograd.Function):
    """softmax(query keyᵀ scale), dropped out, times value."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, chance: float
    ) -> Tensor:
        scores = product(query * scale, key.transpose(2, 3))  # not the scores, which are many times as many
        if mask is not None:
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        weights = torch.softmax(scores, dim=-1)
        kept, ctx.kept_scale = _kept(weights.shape, chance)
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, weights, kept)
        return product(torch.where(kept, weights, 0.0), value).mul_(ctx.kept_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        grad = grads[0] * ctx.kept_scale
        of_value = product(torch.where(kept, weights, 0.0).transpose(2, 3), grad)
        of_weights = product(grad, value.transpose(2, 3)).mul_(kept)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query = product(of_scores, key).mul_(ctx.scale)
        of_key = product(of_scores.transpose(2, 3), query).mul_(ctx.scale)
        return of_query, of_key, of_value, None, None, None


def _kept(shape: torch.Size, chance: float) -> tuple[Tensor, float]:
    """What stays, bool of a shape, and by what it is multiplied."""
    dropped = round(chance * _RESOLUTION)
    if dropped == _RESOLUTION:
        return torch.zeros(shape, dtype=torch.bool), 0.0
    numbers = shape.numel()
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-numbers // 4))  # 64 bits each
    bits = torch.from_numpy(words.view(np.int16))[:numbers].view(shape)
    return bits >= dropped - _RESOLUTION // 2, _RESOLUTION / (_RESOLUTION - dropped)


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
