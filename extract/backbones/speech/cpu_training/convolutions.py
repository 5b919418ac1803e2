"""The convolutions of speech transformers on a CPU with gradients.

Front end of wav2vec 2.0 and HuBERT, over channels-last rows (`speech.front_end`): the library's channels-first
convolutions spend half of their time on transposing for LayerNorm and back, and on GELU's gradient in that layout
(measured: 13 s for 48 s of audio, forward and backward, where these take 7 s).

Positional convolution, 128 taps over 64 channels per group, as products of spectra. Blocks of the signal, twice as long
as the kernel and overlapping by half, are transformed and multiplied with the kernel's spectrum (overlap-save;
Oppenheim & Schafer, "Discrete-Time Signal Processing", section 8.7.3). That takes a sixtieth of the multiplications and
a fifth of the time of oneDNN's convolution, forward and backward, with a difference of 3e-7 (measured).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from extract.backbones.speech.cpu_training.products import product
from extract.backbones.speech.front_end import FrontEnd, Spans, taps_of

BLOCK_FRAMES = 512
"""Frames per block: large enough for the gradient's matrix products."""
CHECKPOINTED_FRAMES = 128
"""Frames per block with checkpointing, where a block's activations count towards the peak memory of a step."""


def use_rows(encoder: Any, *, checkpointing: bool) -> None:
    """Make an encoder of the transformers library use these convolutions on a CPU, in place.

    Other devices use the library's, with checkpointing clip by clip: the output of the first layer for a whole batch
    would be the peak memory of a step.

    Args:
        encoder: wav2vec 2.0, HuBERT or WavLM.
        checkpointing: keep no activations between waveform and frames, and compute a block again for its gradient.
    """
    extractor = encoder.feature_extractor
    kind: Any = type(extractor)

    class ByRows(kind):  # type: ignore[misc] # as a subclass, a copied model uses its own weights
        def forward(self, batch: Tensor) -> Tensor:
            if batch.device.type != "cpu":
                parts = batch.split(1) if checkpointing else (batch,)
                return torch.cat([super(ByRows, self).forward(part) for part in parts])
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
            with torch.autocast("cpu", enabled=False):
                rows, lengths = _TrainableFrontEnd(self, dtype, checkpointing)(list(batch.float()))
            return rows.view(len(batch), lengths[0], -1).transpose(1, 2)

    extractor.__class__ = ByRows


class _TrainableFrontEnd(FrontEnd):
    """Built for every batch, so that it has the weights of the last step."""

    def __init__(self, extractor: Any, dtype: torch.dtype, checkpointing: bool) -> None:
        super().__init__(extractor, dtype, _Taps)
        self._checkpointing = checkpointing and torch.is_grad_enabled()
        self._block_frames = CHECKPOINTED_FRAMES if self._checkpointing else BLOCK_FRAMES

    def _run(self, x: Tensor, spans: Spans) -> Tensor:
        if not self._checkpointing:
            return super()._run(x, spans)
        return checkpoint(super()._run, x, spans, use_reentrant=False, preserve_rng_state=False)


class _Taps:
    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        self.taps = taps_of(conv)
        self._bias, self._stride, self._dtype = conv.bias, conv.stride[0], dtype

    def __call__(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x.to(self._dtype), self.taps, self._bias, self._stride)


class _Convolution(torch.autograd.Function):
    """(rows, in), taps (out, kernel x in), bias (out,) or None → (rows // stride, out), by products that copy nothing.

    Products have the dtype of the rows. Gradients of the weights are float32, so that blocks are summed in float32.

    `stride` taps read rows that do not overlap: a kernel of 3 with a stride of 2 is a product over pairs of rows, and
    one over every second row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        taps = taps.to(x.dtype)
        ctx.save_for_backward(x, taps)
        ctx.stride, ctx.biased = stride, bias is not None
        (first, columns), *others = _windows(x, taps, stride)
        out = product(first, taps[:, columns].t())
        for rows, columns in others:
            out.add_(product(rows, taps[:, columns].t()))
        return out if bias is None else out.add_(bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_x = of_taps = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = torch.zeros_like(x)
            for rows, columns in _windows(of_x, taps, ctx.stride):
                rows.add_(product(grad, taps[:, columns]))
        if ctx.needs_input_grad[1]:
            of_taps = torch.cat([product(grad.t(), rows) for rows, _ in _windows(x, taps, ctx.stride)], dim=1).float()
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = grad.sum(dim=0, dtype=torch.float32)
        return of_x, of_taps, of_bias, None


def _windows(x: Tensor, taps: Tensor, stride: int) -> list[tuple[Tensor, slice]]:
    """Return views (count, taps x in) of rows, each with the columns of its taps."""
    channels = x.shape[1]
    width, step = taps.shape[1], stride * channels
    count = (len(x) * channels - width) // step + 1
    starts = range(0, width, step)
    return [
        (x.as_strided((count, min(step, width - a)), (step, 1), x.storage_offset() + a), slice(a, a + step))
        for a in starts
    ]


def use_fourier(encoder: Any) -> None:
    """Make an encoder of the transformers library use this convolution on a CPU in float32, in place."""
    conv = encoder.encoder.pos_conv_embed.conv
    kind: Any = type(conv)

    class ByFourier(kind):  # type: ignore[misc] # as a subclass, a copied model uses its own weights
        def forward(self, signal: Tensor) -> Tensor:
            if signal.device.type != "cpu" or signal.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
                return super().forward(signal)
            (padding,) = self.padding
            result = convolve(functional.pad(signal, (padding, padding)), self.weight, self.groups)
            return result if self.bias is None else result + self.bias[:, None]

    conv.__class__ = ByFourier


def convolve(signal: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Compute `torch.nn.functional.conv1d` for long kernels.

    Args:
        signal: (batch, channels, time) float32.
        weight: (channels, channels / groups, kernel) float32.
        groups: of channels.

    Returns:
        (batch, channels, time - kernel + 1) float32.
    """
    batch, channels, time = signal.shape
    within, kernel = weight.shape[1:]
    length, times = 2 * kernel, time - kernel + 1
    blocks = -(-times // kernel)
    signal = functional.pad(signal, (0, (blocks + 1) * kernel - time))
    windows = signal.unfold(2, length, kernel).reshape(batch, groups, within, blocks, length)
    of_signal = torch.fft.rfft(windows).permute(1, 4, 0, 3, 2).flatten(2, 3)  # (groups, bins, rows, channels)
    of_weight = torch.fft.rfft(weight, n=length).conj().unflatten(0, (groups, within)).permute(0, 3, 2, 1)
    spectra = (of_signal @ of_weight).unflatten(2, (batch, blocks)).permute(2, 0, 4, 3, 1)
    out = torch.fft.irfft(spectra, n=length)[..., :kernel]  # (batch, groups, channels, blocks, kernel)
    return out.reshape(batch, channels, blocks * kernel)[..., :times]
