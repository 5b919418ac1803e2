"""wav2vec 2.0 and HuBERT inference over a batch without any padding.

The library pads a batch to its longest clip, and masks. Here the clips are concatenated to one sequence, and no
operation mixes two clips: the front end (`front_end`) drops the frames that overlap two clips, the positional
convolution separates clips by zeros (half its kernel), attention is one call per clip, and everything else works on
rows. The same holds for "group" models, whose normalisation over time would see padding.

The result equals the library's on each clip alone up to rounding, for every clip length. WavLM and models with adapters
are run by the library (`supports`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extract.backbones.packed_weights import PackedConv1d, PackedLinear
from extract.backbones.speech.front_end import FrontEnd, layer_norm


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
        dtype: of the matrix products and the activations between them; the residual stream stays in float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        config = model.config
        self._stable = config.do_stable_layer_norm
        self._heads = config.num_attention_heads
        self._front_end = FrontEnd(model.feature_extractor, dtype)
        self._feature_norm = model.feature_projection.layer_norm
        self._projection = _linear(model.feature_projection.projection, dtype)
        position = model.encoder.pos_conv_embed
        self._position_kernel = position.conv.kernel_size[0]
        self._position = PackedConv1d(position.conv.weight, position.conv.bias, position.conv.groups, dtype)
        self._position_activation: nn.Module = position.activation
        self._norm = model.encoder.layer_norm
        self._layers = [_Layer(layer, dtype) for layer in model.encoder.layers]

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Encode normalised waveforms of at least one receptive field each.

        Returns:
            (total frames, dim) float32, the clips one after the other, and the frames of each clip.
        """
        rows, lengths = self._front_end(waveforms)
        x = self._projection(layer_norm(rows, self._feature_norm)).float()
        x = x + self._positions(x, lengths)
        if not self._stable:
            x = self._norm(x)
        for layer in self._layers:
            x = layer(x, lengths, self._heads, self._stable)
        return (self._norm(x) if self._stable else x), lengths

    def _positions(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the convolutional position embedding, (total frames, dim)."""
        gap = self._position_kernel // 2
        starts = torch.tensor([0, *(n + gap for n in lengths[:-1])]).cumsum(0).tolist()
        rows = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).to(x.device)
        spaced = x.new_zeros(starts[-1] + lengths[-1], x.shape[1])
        spaced[rows] = x
        return self._position_activation(self._position(spaced)[rows])


def _linear(linear: nn.Linear, dtype: torch.dtype) -> PackedLinear:
    return PackedLinear(linear.weight, linear.bias, dtype)


class _Layer:
    """One transformer layer over rows."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = PackedLinear(
            torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]), dtype
        )
        self._out = _linear(attention.out_proj, dtype)
        self._up = _linear(layer.feed_forward.intermediate_dense, dtype)
        self._down = _linear(layer.feed_forward.output_dense, dtype)
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
            nn.functional.scaled_dot_product_attention(*clip.permute(1, 2, 0, 3).unsqueeze(1))
            .squeeze(0)
            .transpose(0, 1)
            for clip in qkv.split(list(lengths))
        ]
        return self._out(torch.cat(mixed).flatten(1))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self._down(self._activation(self._up(x)))
