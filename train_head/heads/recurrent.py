"""Run an LSTM in the precision that the machine has for it, in the way and in the sizes that are fast there."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from cache.machine import bfloat16_unit
from train_head.heads import few_clips

_MULTIPLE = 32
"""Of bfloat16 numbers: a row of the matrix units' tiles."""


def lstm_states(lstm: nn.LSTM, frames: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, frames, hidden), the states of the last layer of a batch-first `nn.LSTM`.

    On processors that cannot multiply bfloat16, oneDNN has no LSTM in it, and torch raises ("could not create a
    primitive descriptor"; torch 2.11 on Zen 3): there, `torch.autocast` is left and the LSTM runs in float32.
    """
    if frames.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        states: Tensor = lstm(frames)[0]
    elif _multiplies_bfloat16():
        few = few_clips.pays(lstm, len(frames))
        states = few_clips.run(lstm, frames, torch.bfloat16) if few else _widened(lstm, frames)
    else:
        with torch.autocast("cpu", enabled=False):
            states = lstm(frames.float())[0]
    return states


def _widened(lstm: nn.LSTM, frames: Tensor) -> Tensor:
    """The same LSTM with zeros beside its weights, up to sizes that oneDNN is fast in; a unit of zeros stays at zero.

    Where a size is odd, as the paper's 1027 is, its bfloat16 LSTM takes twice the time of one of 1056 in training, and
    five times in evaluation (measured with AMX, 32 clips a batch).
    """
    hidden = lstm.hidden_size
    wide_input, wide = (-(-size // _MULTIPLE) * _MULTIPLE for size in (lstm.input_size, hidden))
    if (wide_input, wide) == (lstm.input_size, hidden):
        plain: Tensor = lstm(frames)[0]
        return plain
    weights = []
    for layer, (of_input, of_state, *biases) in enumerate(lstm.all_weights):
        columns = (wide if layer else wide_input) - of_input.shape[1]
        weights += [_widen_gates(of_input, wide, columns), _widen_gates(of_state, wide, wide - hidden)]
        weights += [_widen_gates(bias.unsqueeze(1), wide, 0).squeeze(1) for bias in biases]
    frames = functional.pad(frames, (0, wide_input - lstm.input_size))
    start = frames.new_zeros(lstm.num_layers, len(frames), wide)
    states: Tensor = torch.lstm(
        frames, (start, start), weights, lstm.bias, lstm.num_layers, lstm.dropout, lstm.training, False, True
    )[0]
    return states[..., :hidden]


def _widen_gates(weight: Tensor, rows: int, columns: int) -> Tensor:
    """(4 hidden, size) → (4 `rows`, size + `columns`), zeros below each gate's own and to the right."""
    gates = weight.view(4, -1, weight.shape[1])
    return functional.pad(gates, (0, columns, 0, rows - gates.shape[1])).flatten(0, 1)


@functools.cache
def _multiplies_bfloat16() -> bool:
    return bfloat16_unit() is not None
