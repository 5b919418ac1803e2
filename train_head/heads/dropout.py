"""Dropout on a CPU with cheap random numbers, and self-attention with it.

torch draws a mask on a CPU number by number, about 20 ns each. Here 16 random bits per value come from SFC64 (NumPy),
seeded by torch's generator, so masks follow from `torch.manual_seed`. With dropout, torch's attention takes the
scores of all clips through memory step by step; here a clip's stay in the processor's cache. On other devices torch's
own layers are used.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

RESOLUTION = 1 << 16
"""The chance of dropout is rounded to a multiple of one over this."""


class CheapDropout(nn.Dropout):
    """`nn.Dropout` with masks of this file on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        draw = Draw(self.p)
        return x * draw.fill(torch.empty(x.shape, dtype=torch.bool)).to(x.dtype).mul_(draw.scale)


class Draw:
    """Draws masks of what is kept.

    Args:
        chance: of a value to be dropped, below 1.

    Attributes:
        scale: factor for the values that are kept.
    """

    def __init__(self, chance: float) -> None:
        dropped = min(round(chance * RESOLUTION), RESOLUTION - 1)
        self._least = dropped - RESOLUTION // 2
        self._generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
        self.scale = RESOLUTION / (RESOLUTION - dropped)

    def fill(self, kept: Tensor) -> Tensor:
        """Fill a mask: True with the chance of being kept."""
        words = self._generator.random_raw(-(-kept.numel() // 4))  # 64 bits each
        bits = torch.from_numpy(words.view(np.int16))[: kept.numel()].view(kept.shape)
        return torch.ge(bits, self._least, out=kept)


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
    """`nn.MultiheadAttention` of (batch, rows, width) with itself, trained with dropout clip by clip on a CPU."""

    def forward(self, query: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`; without weights while it is trained on a CPU."""
        if not self.training or not self.dropout or query.device.type != "cpu":
            found: tuple[Tensor, Tensor | None] = super().forward(query, *others, **options)
            return found
        ignored = options.get("key_padding_mask")
        if ignored is not None and ignored.dtype != torch.bool:
            ignored = ignored == -torch.inf
        parts = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts.chunk(3, dim=2))
        with torch.autocast("cpu", enabled=False):  # it would round the scores
            attended: Tensor = _Attention.apply(*heads, ignored, self.dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class _Attention(torch.autograd.Function):
    """dropout(softmax(query keyᵀ / √size)) value of (batch, heads, rows, size) each; scores are float32 at least."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, ignored: Tensor | None, chance: float) -> Tensor:
        exact, draw = torch.promote_types(query.dtype, torch.float32), Draw(chance)
        batch, heads, rows, size = query.shape
        weights = query.new_empty(batch, heads, rows, rows)
        kept = torch.empty(weights.shape, dtype=torch.bool)
        out = query.new_empty(batch, rows, heads, size).transpose(1, 2)
        for clip in range(batch):
            scores = (query[clip].to(exact) * size**-0.5) @ key[clip].to(exact).mT
            if ignored is not None:
                scores.masked_fill_(ignored[clip], -torch.inf)
            if exact == query.dtype:
                torch.softmax(scores, dim=-1, out=weights[clip])
            else:
                weights[clip] = scores.softmax(dim=-1)
            dropped = draw.fill(kept[clip]).to(query.dtype).mul_(weights[clip])
            torch.matmul(dropped, value[clip], out=out[clip])
        ctx.scale = draw.scale
        ctx.save_for_backward(query, key, value, weights, kept)
        return out.mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
        for clip in range(len(query)):
            grad, dropped = grads[0][clip] * ctx.scale, kept[clip].to(query.dtype).mul_(weights[clip])
            torch.matmul(dropped.mT, grad, out=of_value[clip])
            of_scores = (grad @ value[clip].mT).mul_(dropped)  # times the weights, as softmax's gradient needs it
            of_scores.addcmul_(weights[clip], of_scores.sum(dim=-1, keepdim=True), value=-1).mul_(
                query.shape[3] ** -0.5
            )
            torch.matmul(of_scores, key[clip], out=of_query[clip])
            torch.matmul(of_scores.mT, query[clip], out=of_key[clip])
        return of_query, of_key, of_value, None, None
