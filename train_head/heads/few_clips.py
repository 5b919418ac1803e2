"""An LSTM over few clips at once in bfloat16 on a CPU, as when a head learns together with a large backbone.

oneDNN's backward pass of four clips takes as long there as that of sixteen. Here each frame is one product with the
recurrent weight, forward and back, and what can be is done for all frames at once; a large layer trains in two thirds
of the time (measured with AMX: 300 frames of 4 clips, 1,027 units, 331 ms for 523).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_UNITS, _UNITS_PER_CLIP = 640, 80


def pays(lstm: nn.LSTM, clips: int) -> bool:
    """Whether it is faster than oneDNN's (measured with AMX, 512 to 1,027 units and 1 to 16 clips)."""
    hidden: int = lstm.hidden_size
    return torch.is_grad_enabled() and hidden >= _UNITS and clips * _UNITS_PER_CLIP <= hidden


def run(lstm: nn.LSTM, frames: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, frames, dim) → (batch, frames, hidden), the states of the last layer of a batch-first `nn.LSTM`.

    Args:
        lstm: in one direction, without projection.
        frames: of any dtype.
        dtype: of the matrix products and of the result; cells and activations are float32 at least.
    """
    states = frames.transpose(0, 1)
    with torch.autocast("cpu", enabled=False):
        for layer, (of_input, of_state, *biases) in enumerate(lstm.all_weights):
            if layer:
                states = functional.dropout(states, lstm.dropout, lstm.training)
            bias = (biases[0] + biases[1]).to(dtype) if biases else None
            gates = functional.linear(states.to(dtype), of_input.to(dtype), bias)
            states = _Recurrence.apply(gates, of_state.to(dtype))
    return states.transpose(0, 1)


class _Recurrence(torch.autograd.Function):
    """What the input adds to the gates (frames, batch, 4 hidden), weight (4 hidden, hidden) → states."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        count, batch, _ = inputs.shape
        hidden, exact = weight.shape[1], torch.promote_types(inputs.dtype, torch.float32)
        states = inputs.new_zeros(count + 1, batch, hidden)
        cells = inputs.new_zeros(count + 1, batch, hidden, dtype=exact)
        gates = torch.empty_like(inputs, dtype=exact)
        for t in range(count):
            gates[t].copy_(torch.addmm(inputs[t], states[t], weight.t()))
            both, candidate, output = gates[t].split((2 * hidden, hidden, hidden), dim=1)
            enter, stay = both.sigmoid_().chunk(2, dim=1)
            torch.mul(enter, candidate.tanh_(), out=cells[t + 1]).addcmul_(stay, cells[t])
            torch.mul(output.sigmoid_(), cells[t + 1].tanh(), out=states[t + 1])
        ctx.save_for_backward(gates, cells, states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gates, cells, states, weight = ctx.saved_tensors
        count, batch, width = gates.shape
        enter, stay, candidate, output = gates.chunk(4, dim=2)
        seen = cells[1:].tanh()
        # by how much the cell changes with the state, and the gates' inputs with cell and state
        of_state = output * (1 - seen * seen)
        slopes = torch.stack(
            [
                candidate * enter * (1 - enter),
                cells[:-1] * stay * (1 - stay),
                enter * (1 - candidate * candidate),
                seen * output * (1 - output),
            ],
            dim=2,
        )
        of_inputs = grads[0].new_empty(count, batch, width)
        by_gates = weight.t().contiguous().t()  # the layout that torch multiplies few rows by fastest
        of_cell, of_next = torch.zeros_like(cells[0]), torch.zeros_like(states[0])
        for t in reversed(range(count)):
            grad = (grads[0][t] + of_next).to(of_cell.dtype)
            of_cell.addcmul_(grad, of_state[t])
            here = of_inputs[t].view(batch, 4, -1)
            torch.mul(of_cell.unsqueeze(1), slopes[t, :, :3], out=here[:, :3])
            torch.mul(grad, slopes[t, :, 3], out=here[:, 3])
            of_cell.mul_(stay[t])
            of_next = of_inputs[t] @ by_gates
        return of_inputs, of_inputs.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
