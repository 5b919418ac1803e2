"""wav2vec 2.0 and HuBERT inference over a batch without any padding.

The library pads a batch to its longest clip and masks. Here the clips lie one behind the other in a single sequence,
and each operation is arranged so that no clip can see another:

- convolutions: every clip starts at a multiple of the total stride (320 samples), so a frame of the long sequence is a
  frame of one clip; the few frames that straddle two clips are dropped. Each layer is one or two matrix products over
  channels-last rows, without a copy: kernel 3 with stride 2 is one over pairs of rows plus one over every second row.
- "group" models normalise each clip's rows over that clip's own time, which padding would make impossible.
- positional convolution: clips are set apart by half its kernel of zeros.
- attention: one call per clip; everything else works on rows.

Equal to the library on each clip alone up to rounding, for every clip length. WavLM and models with adapters go through
the library itself (`supports`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def supports(config: Any) -> bool:
    """Whether a model with this transformers configuration can be run packed."""
    return (
        config.model_type in ("wav2vec2", "hubert")
        and not getattr(config, "add_adapter", False)
        and getattr(config, "adapter_attn_dim", None) is None
        and not getattr(config, "conv_pos_batch_norm", False)
        and getattr(config, "feat_proj_layer_norm", True)
    )


class PackedEncoder:
    """Runs a transformers `Wav2Vec2Model` or `HubertModel` packed, for inference.

    Args:
        model: in evaluation mode, on its device, float32 weights.
        dtype: of the matrix products; normalisations, activations and the residual stream stay in float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        self._model, self._dtype = model, dtype
        config = model.config
        self._stable = config.do_stable_layer_norm
        self._heads = config.num_attention_heads
        self._stride = math.prod(config.conv_stride)
        self._convolutions = [_Convolution(layer, dtype) for layer in model.feature_extractor.conv_layers]
        self._projection = _Linear(model.feature_projection.projection, dtype)
        position = model.encoder.pos_conv_embed
        self._position_weight = position.conv.weight.detach().clone()  # weight normalisation applied once
        self._layers = [_Layer(layer, dtype) for layer in model.encoder.layers]

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Encode normalised waveforms of at least one receptive field each.

        Returns:
            (total frames, dim) float32, the clips one after the other, and the frames of each clip.
        """
        rows, lengths = self._features(waveforms)
        projection = self._model.feature_projection
        x = self._projection(projection.layer_norm(rows)).float()
        x = x + self._positions(x, lengths)
        norm = self._model.encoder.layer_norm
        if not self._stable:
            x = norm(x)
        for layer in self._layers:
            x = layer(x, lengths, self._heads, self._stable)
        return (norm(x) if self._stable else x), lengths

    def _features(self, waveforms: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """(total frames, channels) of the convolutional front end."""
        slots = [-(-len(w) // self._stride) for w in waveforms]
        packed = torch.cat(
            [functional.pad(w, (0, n * self._stride - len(w))) for w, n in zip(waveforms, slots, strict=True)]
        )
        x = packed.unsqueeze(1)  # (samples, 1), then (rows, channels)
        starts = torch.tensor([0, *slots[:-1]]).cumsum(0).mul(self._stride).tolist()
        lengths = [len(w) for w in waveforms]
        for convolution in self._convolutions:
            starts = [start // convolution.stride for start in starts]
            lengths = [(n - convolution.kernel) // convolution.stride + 1 for n in lengths]
            x = convolution(x, starts, lengths)
        keep = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
        return x[keep.to(x.device)], lengths

    def _positions(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """(total frames, dim) of the convolutional position embedding."""
        conv = self._model.encoder.pos_conv_embed.conv
        gap = conv.kernel_size[0] // 2
        starts = torch.tensor([0, *(n + gap for n in lengths[:-1])]).cumsum(0).tolist()
        rows = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).to(x.device)
        spaced = x.new_zeros(starts[-1] + lengths[-1], x.shape[1])
        spaced[rows] = x
        out = functional.conv1d(
            spaced.t().unsqueeze(0).to(self._dtype),
            self._position_weight.to(self._dtype),
            conv.bias.to(self._dtype),
            padding=gap,
            groups=conv.groups,
        )
        activation: nn.Module = self._model.encoder.pos_conv_embed.activation
        return activation(out[0].t()[rows].float())


class _Linear:
    """A linear layer in the dtype of the matrix products; takes and gives rows."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        self.weight = linear.weight.detach().to(dtype)
        self.bias = linear.bias.detach().to(dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows.to(self.weight.dtype), self.weight, self.bias)


class _Convolution:
    """One layer of the front end over (rows, channels), as matrix products."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        conv = layer.conv
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        taps = conv.weight.detach().permute(2, 1, 0).contiguous().to(dtype)  # (kernel, in, out)
        self._pieces = [
            (first, taps[first : first + self.stride].flatten(0, 1)) for first in range(0, self.kernel, self.stride)
        ]
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._norm = getattr(layer, "layer_norm", None)
        self._activation = layer.activation
        self._dtype = dtype

    def __call__(self, x: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """(rows, in) → (rows // stride, out); `starts` and `lengths` say where each clip lies in the result."""
        x = x.to(self._dtype).contiguous()
        count, channels = (len(x) - self.kernel) // self.stride + 1, x.shape[1]
        out: Tensor | None = None
        for first, weight in self._pieces:
            rows = x.as_strided((count, len(weight)), (self.stride * channels, 1), first * channels)
            if out is None:
                out = rows @ weight if self._bias is None else torch.addmm(self._bias, rows, weight)
            else:
                out.addmm_(rows, weight)
        assert out is not None
        return self._activation(self._normalise(out, starts, lengths))

    def _normalise(self, x: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
        if isinstance(self._norm, nn.LayerNorm):
            return self._norm(x.float())
        if isinstance(self._norm, nn.GroupNorm):  # one group per channel: each clip over its own time
            x = x.float()
            for start, length in zip(starts, lengths, strict=True):
                clip = x[start : start + length]
                spread, mean = torch.var_mean(clip, dim=0, correction=0)
                clip.sub_(mean).mul_(torch.rsqrt(spread + self._norm.eps) * self._norm.weight).add_(self._norm.bias)
        return x


class _Layer:
    """One transformer layer over rows."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = _Linear(projections[0], dtype)
        self._qkv.weight = torch.cat([p.weight.detach() for p in projections]).to(dtype)
        self._qkv.bias = torch.cat([p.bias.detach() for p in projections]).to(dtype)
        self._out = _Linear(attention.out_proj, dtype)
        self._up = _Linear(layer.feed_forward.intermediate_dense, dtype)
        self._down = _Linear(layer.feed_forward.output_dense, dtype)
        self._activation = layer.feed_forward.intermediate_act_fn
        self._first_norm, self._second_norm = layer.layer_norm, layer.final_layer_norm

    def __call__(self, x: Tensor, lengths: Sequence[int], heads: int, stable: bool) -> Tensor:
        """(total frames, dim) float32 → the same; `stable` models normalise before, others after."""
        if stable:
            x = x + self._attend(self._first_norm(x), lengths, heads)
            return x + self._feed_forward(self._second_norm(x))
        x = self._first_norm(x + self._attend(x, lengths, heads))
        return self._second_norm(x + self._feed_forward(x))

    def _attend(self, x: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
        qkv = self._qkv(x).view(len(x), 3, heads, -1)  # (frames, 3, heads, head dim)
        mixed = [
            functional.scaled_dot_product_attention(*clip.permute(1, 2, 0, 3).unsqueeze(1)).squeeze(0).transpose(0, 1)
            for clip in qkv.split(list(lengths))
        ]
        return self._out(torch.cat(mixed).flatten(1)).float()

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self._down(self._activation(self._up(x))).float()
