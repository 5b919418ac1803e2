"""The convolutional front end of wav2vec 2.0 and HuBERT over many clips at once, without padding.

The clips are concatenated to one signal. Each starts at a multiple of the total stride (320 samples), so that a frame
of the signal is a frame of one clip. The few frames that overlap two clips are dropped.

Every layer is one matrix product over channels-last rows: kernel 3 with stride 2 reads rows of 3 x channels that start
2 x channels apart. LayerNorm and GELU run over the last axis. `cpu_training` adds gradients.

On a CPU, a layer that runs over a whole batch is limited by memory (6 MB per second of audio for layer 0 alone). So the
seven layers run over one block of frames after another. A block is small enough that all intermediate values stay in a
core's cache, and costs 80 samples of overlap. A GPU computes the whole batch as one block.

"group" models normalise each channel of layer 0 over the time of a clip. Because a convolution is linear, mean and
variance of its outputs follow from the mean and covariance of its inputs: (kernel) and (kernel x kernel) numbers per
clip. So these models run in blocks as well, with one scale and shift per clip and channel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from extract.backbones.packed_weights import PackedLinear

BLOCK_FRAMES = 64
"""Frames (of 20 ms) per block on a CPU: 2 MB after layer 1 in bfloat16, which fits into a core's cache."""
Spans = Sequence[tuple[int, int, tuple[Tensor, Tensor]]]
"""Per clip in a block of a "group" model: first row after layer 0, end of its rows, scale and shift."""


class Product(Protocol):
    """The convolution of a layer: (rows, in) contiguous → (rows // stride, out)."""

    taps: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the convolution."""


class FrontEnd:
    """Runs `model.feature_extractor` of transformers packed.

    Args:
        extractor: with float32 weights, on its device.
        dtype: of the matrix products and of what lies between them.
        product: makes the product of a layer from its convolution and the dtype; `PackedTaps` by default.
    """

    def __init__(
        self, extractor: Any, dtype: torch.dtype, product: Callable[[nn.Conv1d, torch.dtype], Product] | None = None
    ) -> None:
        self._layers = [Layer(layer, (product or PackedTaps)(layer.conv, dtype)) for layer in extractor.conv_layers]
        self._convolutions = [(layer.kernel, layer.stride) for layer in self._layers]
        self._stride = math.prod(stride for _, stride in self._convolutions)
        self._block_frames = BLOCK_FRAMES

    def __call__(self, waveforms: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Run normalised waveforms of at least one receptive field each.

        Returns:
            (total frames, channels), the clips one after the other, and the frames of each clip.
        """
        slots = [-(-len(w) // self._stride) for w in waveforms]  # frames, with those that overlap two clips
        offsets = torch.tensor([0, *slots]).cumsum(0).tolist()
        scales = [self._layers[0].scale_of(w) for w in waveforms]
        tail = num_samples(1, self._convolutions) - self._stride
        signal = torch.cat(
            [nn.functional.pad(w, (0, n * self._stride - len(w))) for w, n in zip(waveforms, slots, strict=True)]
            + [waveforms[0].new_zeros(tail)]
        )
        block = self._block_frames if signal.device.type == "cpu" else offsets[-1]
        blocks = []
        for first in range(0, offsets[-1], block):
            frames = min(block, offsets[-1] - first)
            x = signal[first * self._stride :][: num_samples(frames, self._convolutions)].unsqueeze(1)  # (samples, 1)
            rows_per_frame = self._stride // self._layers[0].stride
            spans = [
                (max(0, a - first) * rows_per_frame, (b - first) * rows_per_frame, scale)
                for a, b, scale in zip(offsets, offsets[1:], scales, strict=False)
                if scale is not None and a < first + frames and b > first
            ]
            blocks.append(self._run(x, spans))
        lengths = [num_frames(len(w), self._convolutions) for w in waveforms]
        keep = torch.cat([torch.arange(start, start + n) for start, n in zip(offsets, lengths, strict=False)])
        return torch.cat(blocks)[keep.to(signal.device)], lengths

    def _run(self, x: Tensor, spans: Spans) -> Tensor:
        """All layers over the (samples, 1) of a block."""
        for layer in self._layers:
            x = layer(x, spans)
        return x


class PackedTaps:
    """A convolution without gradients: (rows, in) → (rows // stride, out)."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        self.taps = taps_of(conv).detach()
        self._linear = PackedLinear(self.taps, conv.bias, dtype)
        self._kernel, self._stride = conv.kernel_size[0], conv.stride[0]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        count, channels = (len(x) - self._kernel) // self._stride + 1, x.shape[1]
        shape, strides = (count, self._kernel * channels), (self._stride * channels, 1)
        return self._linear(x.as_strided(shape, strides, x.storage_offset()))


class Layer:
    """Convolution, normalisation and activation over (rows, channels).

    Args:
        layer: of the library.
        product: computes its convolution; `taps` are its weight.
    """

    def __init__(self, layer: Any, product: Product) -> None:
        self.kernel, self.stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self._product = product
        self._conv_bias = layer.conv.bias
        self._norm = getattr(layer, "layer_norm", None)
        self._activation = layer.activation

    def __call__(self, x: Tensor, spans: Spans) -> Tensor:
        """(rows, in) → (rows // stride, out)."""
        x = self._product(x.contiguous())
        if isinstance(self._norm, nn.LayerNorm):
            x = layer_norm(x, self._norm)
        elif isinstance(self._norm, nn.GroupNorm):
            if torch.is_grad_enabled():
                scaled = [(x[first:end] * scale + shift).to(x.dtype) for first, end, (scale, shift) in spans]
                x = torch.cat([*scaled, x[spans[-1][1] :]])
            else:
                for first, end, (scale, shift) in spans:
                    x[first:end] = x[first:end] * scale + shift
        return self._activation(x)

    def scale_of(self, waveform: Tensor) -> tuple[Tensor, Tensor] | None:
        """GroupNorm's (scale, shift), each (out,) float32, over the time of one clip; None for other norms."""
        if not isinstance(self._norm, nn.GroupNorm):
            return None
        windows = waveform.unfold(0, self.kernel, self.stride).double()
        taps = self._product.taps.double()
        centred = windows - windows.mean(dim=0)
        covariance = centred.t() @ centred / len(windows)
        variance = ((taps @ covariance) * taps).sum(dim=1)
        mean = taps @ windows.mean(dim=0)
        if self._conv_bias is not None:
            mean = mean + self._conv_bias.double()
        scale = torch.rsqrt(variance + self._norm.eps) * self._norm.weight
        return scale.float(), (self._norm.bias - mean * scale).float()


def num_frames(samples: int, convolutions: Sequence[tuple[int, int]]) -> int:
    """Return the frames that convolutions of these (kernel, stride) give."""
    for kernel, stride in convolutions:
        samples = (samples - kernel) // stride + 1
    return samples


def num_samples(frames: int, convolutions: Sequence[tuple[int, int]]) -> int:
    """Return the samples that convolutions of these (kernel, stride) need: the receptive field of the frames."""
    for kernel, stride in reversed(convolutions):
        frames = (frames - 1) * stride + kernel
    return frames


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Apply LayerNorm, which computes in float32 and keeps the dtype of its input."""
    return nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def taps_of(conv: nn.Conv1d) -> Tensor:
    """Return the weight of a convolution as (out, kernel x in)."""
    weight = conv.weight
    # one channel is not permuted, so that its gradient has the memory layout of the weight, as DDP needs
    return weight.flatten(1) if weight.shape[1] == 1 else weight.permute(0, 2, 1).flatten(1)
