"""Linear layers and grouped convolutions whose weights are laid out once for the processor's matrix units.

`torch.nn.functional.linear` hands oneDNN a plain weight, which it copies into its own layout on every call: at 350 rows
that costs a third of the time in bfloat16. In float32 torch asks MKL instead, which is the fastest on Intel's
processors and holds itself back on AMD's, where oneDNN is asked here.

Packing the weight once is what torch's own compiler does when it freezes a model; the same private operators are used
here. Where a build of torch lacks them, and on CUDA, which has no such layout, the public functions compute the same.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

_ROWS_HINT = 512
"""Rows for which oneDNN chooses the layout; other counts run as fast (measured from 50 to 2,400)."""


class PackedLinear:
    """(rows, in) of any dtype → (rows, out) in the dtype of the matrix products.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        dtype: of the product, its inputs and its result.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._packed = can_pack(self._weight) and not (dtype == torch.float32 and mkl_is_at_home())
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous(), _ROWS_HINT)
        self._dtype = dtype

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply to rows that may overlap in memory (`Tensor.as_strided`)."""
        rows = rows.to(self._dtype)
        if not self._packed:
            return functional.linear(rows, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return out


class PackedConv1d:
    """A "same" convolution over (time, channels); an even kernel's extra last frame is dropped.

    Args:
        weight: (channels, channels per group, kernel).
        bias: (channels,), or None.
        groups: of channels.
        dtype: of the products, their inputs and their result; float32 where `wrong_below_float32`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int, dtype: torch.dtype) -> None:
        if wrong_below_float32(weight):
            dtype = torch.float32
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._geometry = ([0, weight.shape[2] // 2], [1, 1], [1, 1], groups)  # padding, stride, dilation, groups
        self._packed = can_pack(self._weight)
        if self._packed:
            image = self._weight.unsqueeze(2).to(memory_format=torch.channels_last)
            shape = [1, len(weight), 1, _ROWS_HINT]
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(image, *self._geometry, shape)
        self._dtype = dtype

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply to a whole signal."""
        rows = rows.to(self._dtype)
        time = len(rows)
        if self._packed:
            image = rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)  # (1, channels, 1, time), channels last in memory
            run: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
            return run(image, self._weight, self._bias, *self._geometry, "none", [], "")[0, :, 0, :time].t()
        (_, padding), _, _, groups = self._geometry
        signal = rows.t().unsqueeze(0)
        return functional.conv1d(signal, self._weight, self._bias, padding=padding, groups=groups)[0, :, :time].t()


def wrong_below_float32(weight: Tensor) -> bool:
    """Whether a (out, channels per group, kernel) convolution must run in float32.

    oneDNN on processors with AMX (torch 2.11) returns values without any relation to the right ones, in bfloat16 and
    float16, for long kernels over fewer than 16 channels per group.
    """
    return weight.device.type == "cpu" and weight.shape[1] < 16


@functools.cache
def mkl_is_at_home() -> bool:
    """Whether this is an Intel processor, on which MKL's float32 product is a few percent faster than oneDNN's."""
    info = Path("/proc/cpuinfo")
    return torch.backends.mkl.is_available() and info.exists() and "GenuineIntel" in info.read_text()


def can_pack(weight: Tensor) -> bool:
    """Whether this build of torch can lay a weight of this device and dtype out for oneDNN."""
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise")
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
