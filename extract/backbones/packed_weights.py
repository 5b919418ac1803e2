"""Linear layers and grouped convolutions whose weights are laid out once for the matrix units of the processor.

`torch.nn.functional.linear` hands oneDNN a plain weight, which it copies into its own layout on every call: at 350 rows
that costs a third of the time in bfloat16. In float32 torch uses MKL instead, which is the fastest on
Intel's processors but slow on AMD's, where oneDNN is used here.

Torch's compiler packs the weights once, too, when it freezes a model; the same private operators are used here
(`extract.private`). Where they do not work, and on CUDA, which has no such layout, the public functions compute the
same.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

from extract import private


class PackedLinear:
    """(rows, in) of any dtype → (rows, out) in the dtype of the matrix products.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        dtype: of the product, its inputs and its result.
        gelu: "none" or "tanh" where a GELU with this approximation follows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: str | None = None) -> None:
        self._dtype, self._weight, self._gelu = dtype, weight.detach().to(dtype), gelu
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._run: Callable[[Tensor, Tensor, Tensor | None, str | None], Tensor] = _linear
        if can_pack(self._weight, private.LINEAR) and not (dtype == torch.float32 and mkl_is_faster()):
            self._run, self._weight = private.packed_linear, private.pack_linear(self._weight)

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply to rows that may overlap in memory (`Tensor.as_strided`)."""
        return self._run(rows.to(self._dtype), self._weight, self._bias, self._gelu)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None) -> Tensor:
    out = functional.linear(rows, weight, bias)
    return out if gelu is None else functional.gelu(out, approximate=gelu)


class PackedConv1d:
    """A "same" convolution over (time, channels); an even kernel's extra last frame is dropped.

    Args:
        weight: (channels, channels per group, kernel).
        bias: (channels,), or None.
        groups: of channels.
        dtype: of the products, their inputs and their result; float32 where `wrong_below_float32`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int, dtype: torch.dtype) -> None:
        self._dtype = torch.float32 if wrong_below_float32(weight) else dtype
        self._weight = weight.detach().to(self._dtype)
        self._bias = None if bias is None else bias.detach().to(self._dtype)
        self._geometry: private.Geometry = ([0, weight.shape[2] // 2], [1, 1], [1, 1], groups)
        self._packed = can_pack(self._weight, private.CONVOLUTION)
        if self._packed:
            self._weight = private.pack_convolution(self._weight, self._geometry)

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply to a whole signal."""
        rows = rows.to(self._dtype)
        if self._packed:
            return private.packed_convolution(rows, self._weight, self._bias, self._geometry)[: len(rows)]
        (_, padding), _, _, groups = self._geometry
        signal = rows.t().unsqueeze(0)
        return functional.conv1d(signal, self._weight, self._bias, padding=padding, groups=groups)[0].t()[: len(rows)]


class PackedConv2d:
    """A convolution over (images, channels, height, width), channels last in memory.

    Args:
        weight: (out, in, height, width).
        bias: (out,), or None.
        dtype: of the products, their inputs and their result.
        size: height and width of the images.
        stride: in both directions.
        padding: in both directions.
        relu: whether a ReLU follows.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        size: Sequence[int],
        *,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
    ) -> None:
        self._weight = weight.detach().to(dtype, memory_format=torch.channels_last)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._relu = relu
        self._geometry: private.Geometry = ([padding] * 2, [stride] * 2, [1, 1], 1)
        self._packed = can_pack(self._weight, private.IMAGES)
        if self._packed:
            self._weight = private.pack_image_convolution(self._weight, self._geometry, size)

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images of the dtype of the products."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self._packed:
            return private.packed_image_convolution(images, self._weight, self._bias, self._geometry, relu=self._relu)
        out = functional.conv2d(images, self._weight, self._bias, self._geometry[1], self._geometry[0])
        return out.relu_() if self._relu else out


def wrong_below_float32(weight: Tensor) -> bool:
    """Whether a (out, channels per group, kernel) convolution must run in float32.

    In bfloat16 and float16, oneDNN on processors with AMX (torch 2.11) returns wrong values for long kernels over fewer
    than 16 channels per group.
    """
    return weight.device.type == "cpu" and weight.shape[1] < 16


def keep_in_float32(module: nn.Module) -> None:
    """Let a module compute outside of autocast; a copy of it does so with its own weights."""
    module.forward = MethodType(_in_float32, module)


def _in_float32(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(module).forward(module, x.float())


@functools.cache
def mkl_is_faster() -> bool:
    """Whether this is an Intel processor, on which MKL's float32 product is a few percent faster than oneDNN's."""
    info = Path("/proc/cpuinfo")
    return torch.backends.mkl.is_available() and info.exists() and "GenuineIntel" in info.read_text()


def can_pack(weight: Tensor, dtypes: Collection[torch.dtype] = private.LINEAR & private.CONVOLUTION) -> bool:
    """Whether this build of torch can lay a weight of this device and dtype out for oneDNN, given what works here."""
    return weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and weight.dtype in dtypes
