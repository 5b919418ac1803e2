"""Matrix products of a training step in float32 on AMD's processors, where MKL (used by torch) is slow.

NumPy's OpenBLAS reaches 150 to 160 GFLOP/s where MKL reaches 110 to 135 (two Zen 3 cores, the products of a large
wav2vec 2.0). Such products take more than half of the time of a step of a large model. NumPy works on torch's memory
without copies. On other processors and devices, with another BLAS and in lower precision, torch's products are used.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_fast_products(encoder: nn.Module) -> None:
    """Make the linear layers of a module use these products on a CPU, in place.

    NumPy's BLAS gets the current number of torch's threads, for the whole process.
    """
    if not numpy_is_faster():
        return
    threadpool_limits(torch.get_num_threads(), user_api="blas")
    for module in encoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `a @ b` without gradients, for matrices or batches of matrices.

    Args:
        a: (…, rows, inner).
        b: (…, inner, columns).
        out: tensor to write to, of the result's shape, with at most three dimensions; may not overlap `a` or `b`.
    """
    if a.dtype != torch.float32 or a.device.type != "cpu" or not numpy_is_faster():
        return a @ b if out is None else torch.matmul(a, b, out=out)
    out = torch.empty(*a.shape[:-1], b.shape[-1]) if out is None else out
    # not Tensor.numpy(), after which a weight's memory cannot be freed and refilled, as sharding does
    np.matmul(np.from_dlpack(a.detach()), np.from_dlpack(b.detach()), out=out.numpy())
    return out


@functools.cache
def numpy_is_faster() -> bool:
    """Whether this is an AMD processor and NumPy uses OpenBLAS."""
    info = Path("/proc/cpuinfo")
    here = info.exists() and "AuthenticAMD" in info.read_text()
    return here and any(library["internal_api"] == "openblas" for library in threadpool_info())


class FastLinear(nn.Linear):
    """`nn.Linear` that uses `product`, forward and backward, where a gradient is needed."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        here = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not here or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        rows: Tensor = _Linear.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    """(rows, in), weight (out, in), bias (out,) or None → (rows, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.biased = bias is not None
        out = product(x, weight.t())
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        of_x = product(grad, weight) if ctx.needs_input_grad[0] else None
        of_weight = product(grad.t(), x) if ctx.needs_input_grad[1] else None
        of_bias = grad.sum(dim=0) if ctx.biased and ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias
