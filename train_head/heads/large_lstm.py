"""A large LSTM that learns in bfloat16 on a CPU, where oneDNN's is wrong or slow.

On processors with AMX, oneDNN 3.10 (torch 2.11) gives gradients without any relation to the right ones for LSTMs of
1,024 units and more where the larger of hidden and input size is a multiple of 32; what it gives forwards is right.
Elsewhere its way back takes as long for four clips as for sixteen. Here each frame is one product with the recurrent
weight, forward and back; those with the other weights are made for all frames at once. 300 frames of 4 clips and 1,027
units take 331 ms for 523, of 32 clips as long as oneDNN's of 1,040 (measured with AMX).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ALWAYS = 1000
"""Units from which on oneDNN's gradients are not asked for: an LSTM of 1,009 would be widened to 1,024."""
_FEW, _PER_CLIP = 640, 80
"""Units, and units per clip, from which on this is faster (measured with AMX, 512 to 1,027 units, 1 to 16 clips)."""


def is_wanted(lstm: nn.LSTM, clips: int) -> bool:
    """Whether this is to run; the same in a training step with and without gradients, so that both drop the same.

    Args:
        lstm: in training or evaluation mode.
        clips: in the batch.
    """
    hidden: int = lstm.hidden_size
    learns = lstm.training or torch.is_grad_enabled()
    return learns and (hidden >= _ALWAYS or (hidden >= _FEW and clips * _PER_CLIP <= hidden))


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
    """Input's share of the gates (frames, batch, 4 hidden), weight (4 hidden, hidden) → states."""

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
        of_inputs = torch.empty_like(gates, dtype=weight.dtype)
        by_gates = weight.t().contiguous().t()  # the layout that torch multiplies few rows by fastest
        of_cell, of_next = torch.zeros_like(cells[0]), torch.zeros_like(states[0])
        for t in reversed(range(len(gates))):
            enter, stay, candidate, output = gates[t].chunk(4, dim=1)
            seen, of_state = cells[t + 1].tanh(), (grads[0][t] + of_next).to(of_cell.dtype)
            of_cell += of_state * output * (1 - seen * seen)
            of_gates = (
                of_cell * candidate * enter * (1 - enter),
                of_cell * cells[t] * stay * (1 - stay),
                of_cell * enter * (1 - candidate * candidate),
                of_state * seen * output * (1 - output),
            )
            of_inputs[t] = torch.cat(of_gates, dim=1)
            of_cell *= stay
            of_next = of_inputs[t] @ by_gates
        return of_inputs, of_inputs.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
