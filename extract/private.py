"""The private functions of torch and accelerate that emi uses, each with its public alternative.

Private operators may change with any version. So each operator is tried on import, on a few numbers whose result is
known. An operator that is missing, or returns other values, is not used.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Geometry = tuple[list[int], list[int], list[int], int]
"""Padding, stride, dilation and groups of a convolution over images; a signal is an image with one row."""
IMAGES_HINT = 8
"""Number of images for which oneDNN chooses the layout."""
ROWS_HINT = 512
"""Number of rows for which oneDNN chooses the layout; other numbers are as fast (measured from 50 to 2,400)."""


def pack_linear(weight: Tensor) -> Tensor:
    """Convert a (out, in) weight to oneDNN's layout, for `packed_linear` only."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)


def packed_linear(rows: Tensor, packed: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    """Map (rows, in) to (rows, out); with `gelu`, which is "none" or "tanh", a GELU of this approximation follows.

    The public alternative is `functional.linear` with the original weight, and `functional.gelu` where asked for.
    """
    after: tuple[str, list[float], str] = ("none", [], "") if gelu is None else ("gelu", [], gelu)
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, *after)


def pack_convolution(weight: Tensor, geometry: Geometry) -> Tensor:
    """Convert a (channels, channels per group, kernel) weight to oneDNN's layout, for `packed_convolution` only."""
    image = weight.unsqueeze(2).to(memory_format=torch.channels_last)
    shape = [1, len(weight), 1, ROWS_HINT]
    return torch.ops.mkldnn._reorder_convolution_weight(image, *geometry, shape)


def packed_convolution(rows: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Map (time, channels) to (time, channels), with one more frame where the kernel is even.

    The public alternative is `functional.conv1d` with the original weight.
    """
    image = rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)  # (1, channels, 1, time), channels last in memory
    run: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
    return run(image, packed, bias, *geometry, "none", [], "")[0, :, 0].t()


def pack_image_convolution(weight: Tensor, geometry: Geometry, size: Sequence[int]) -> Tensor:
    """Convert a (out, in, height, width) weight to oneDNN's layout, for images of this height and width."""
    shape = [IMAGES_HINT, weight.shape[1], *size]
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(memory_format=torch.channels_last), *geometry, shape
    )


def packed_image_convolution(
    images: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, *, relu: bool
) -> Tensor:
    """Convolve (images, channels, height, width), channels last in memory.

    The public alternative is `functional.conv2d` with the original weight, and `relu` where that is asked for.
    """
    run: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
    return run(images, packed, bias, *geometry, "relu" if relu else "none", [], "")


def softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """Return the gradient of softmax's input over the last axis from the gradient of its result, in the same dtype."""
    if SOFTMAX_BACKWARD:
        return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)
    return _public_softmax_backward(grad, probabilities)


@contextlib.contextmanager
def without_accelerate_state() -> Iterator[None]:
    """Reset accelerate's state of this process in its group for a while, then restore it.

    There is no public alternative. Without the private functions the state stays, which is empty on the command line.
    """
    from accelerate import PartialState

    if not all(hasattr(PartialState, name) for name in ("_shared_state", "_reset_state")):
        yield
        return
    before = dict(PartialState._shared_state)
    PartialState._reset_state()
    try:
        yield
    finally:
        PartialState._reset_state()
        PartialState._shared_state.update(before)


def _public_softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    exact = torch.promote_types(probabilities.dtype, torch.float32)
    of_weights, weights = grad.to(exact), probabilities.to(exact)
    return (weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))).to(probabilities.dtype)


def _numbers(*shape: int) -> Tensor:
    """Return fixed numbers, exact in bfloat16, without drawing from torch's generator, which is the user's."""
    return torch.arange(torch.Size(shape).numel()).mul(37).remainder(17).sub(8).div(8).view(shape)


def _works(ours: Callable[[], Tensor], public: Tensor, rounding: float) -> bool:
    """Whether a private function exists here and returns the values of the public one."""
    try:
        out = ours().float()
        return out.shape == public.shape and bool((out - public).norm() <= rounding * public.norm())
    except Exception:  # a missing operator, another signature, a processor without such instructions
        return False


def _dtypes(ours: Callable[..., Tensor], public: Tensor, *inputs: Tensor) -> frozenset[torch.dtype]:
    """Return the dtypes in which a private function works."""
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
    with contextlib.suppress(Exception):  # if it is missing, the trial below decides
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            del rounding[torch.bfloat16]
    trials = {dtype: functools.partial(ours, *(x.to(dtype) for x in inputs)) for dtype in rounding}
    return frozenset(dtype for dtype, trial in trials.items() if _works(trial, public, rounding[dtype]))


_threads = torch.get_num_threads()
# with one thread the import starts none of OpenMP's threads, which do not survive if the user's program forks
torch.set_num_threads(1)
with torch.no_grad():
    _rows, _weight = _numbers(5, 32), _numbers(48, 32)
    LINEAR = _dtypes(
        lambda rows, weight: packed_linear(rows, pack_linear(weight), None, "tanh"),
        functional.gelu(functional.linear(_rows, _weight), approximate="tanh"),
        _rows,
        _weight,
    )
    """Dtypes in which `packed_linear` can be used here."""
    _rows, _weight, _geometry = _numbers(9, 32), _numbers(32, 16, 4), ([0, 2], [1, 1], [1, 1], 2)
    CONVOLUTION = _dtypes(
        lambda rows, weight: packed_convolution(rows, pack_convolution(weight, _geometry), None, _geometry),
        functional.conv1d(_rows.t(), _weight, padding=2, groups=2).t(),
        _rows,
        _weight,
    )
    """Dtypes in which `packed_convolution` can be used here."""
    _rows, _weight, _geometry = _numbers(2, 16, 6, 5), _numbers(32, 16, 3, 3), ([1, 1], [2, 2], [1, 1], 1)
    IMAGES = _dtypes(
        lambda images, weight: packed_image_convolution(
            images.contiguous(memory_format=torch.channels_last),
            pack_image_convolution(weight, _geometry, images.shape[2:]),
            None,
            _geometry,
            relu=True,
        ),
        functional.conv2d(_rows, _weight, stride=2, padding=1).relu(),
        _rows,
        _weight,
    )
    """Dtypes in which `packed_image_convolution` can be used here."""
    _weights = torch.softmax(_numbers(3, 16), dim=-1)
    SOFTMAX_BACKWARD = _works(
        lambda: torch._softmax_backward_data(_numbers(3, 16), _weights, -1, _weights.dtype),
        _public_softmax_backward(_numbers(3, 16), _weights),
        1e-5,
    )
torch.set_num_threads(_threads)
