"""The convolutions of wav2vec 2.0 and HuBERT on a CPU with gradients, over channels-last rows (`front_end`).

The library's channels-first convolutions spend half of their time on transposing for LayerNorm and back, and on GELU's
gradient in that layout (measured: 13 s for 48 s of audio, forward and backward, where these take 7 s).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
