"""Matrix products of a training step in float32 on processors where MKL, which torch asks, holds itself back.

On AMD's, NumPy's OpenBLAS reaches 150 to 160 GFLOP/s where MKL reaches 110 to 135 (two Zen 3 cores, the products of a
large wav2vec 2.0), and a step of a large model is such products for more than half of its time. NumPy works on torch's
memory as it lies. On Intel's processors, on other devices and in lower precision torch's own products run.
"""

from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extract.backbones.packed_weights import mkl_is_at_home


def use_fast_products(encoder: nn.Module) -> None:
    """Let the linear layers of a module train this way on a CPU, in place; NumPy gets as many threads as torch."""
    if mkl_is_at_home():
        return
    threadpool_limits(torch.get_num_threads(), user_api="blas")
    for module in encoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` without gradients, for matrices or batches of them."""
    if a.dtype != torch.float32 or a.device.type != "cpu" or mkl_is_at_home():
        return a @ b
    out = torch.empty(*a.shape[:-1], b.shape[-1])
    # not Tensor.numpy(), after which a weight's memory cannot be freed and filled again, as where models are sharded
    np.matmul(np.from_dlpack(a.detach()), np.from_dlpack(b.detach()), out=out.numpy())
    return out


class FastLinear(nn.Linear):
    """`nn.Linear` whose products, forward and back, are those of this file where a gradient is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        here = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not here or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        rows: Tensor = _Linear.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    """(rows, in), weight (out, in), bias (out,) or None → (rows, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
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
