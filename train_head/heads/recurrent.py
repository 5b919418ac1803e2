"""Run an LSTM or a GRU in the precision that the machine has for it, and in the way and the sizes that are fast."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cache.system.machine import bfloat16_unit
from train_head.heads import large_lstm

_MULTIPLE = 16


def lstm_states(lstm: nn.LSTM, frames: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, frames, hidden), the states of the last layer of a batch-first `nn.LSTM`.

    On processors that cannot multiply bfloat16, oneDNN has no LSTM in it, and torch raises ("could not create a
    primitive descriptor"; torch 2.11 on Zen 3): there, `torch.autocast` is left and the LSTM runs in float32.
    """
    if frames.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        states = cudnn_states(lstm, frames)
    elif bfloat16_unit() is None:
        states = _in_float32(lstm, frames)
    elif large_lstm.is_wanted(lstm, len(frames)):
        states = large_lstm.run(lstm, frames, torch.get_autocast_dtype("cpu"))
    else:
        states = _widened(lstm, frames)
    return states


def cudnn_states(rnn: nn.RNNBase, frames: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, frames, hidden), the states of the last layer of a batch-first LSTM or GRU.

    On CUDA, `torch.autocast` runs cuDNN's in float16 whatever its dtype is (`AutocastRNN.cpp`, torch 2.11), and small
    gradients are lost where the loss is not scaled: beside bfloat16 they run in float32, of which the matrix units take
    10 bits (TF32).
    """
    if _would_be_float16(frames):
        return _in_float32(rnn, frames)
    states: Tensor = rnn(frames)[0]
    return states


def _would_be_float16(frames: Tensor) -> bool:
    kind = frames.device.type
    return kind != "cpu" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def _in_float32(rnn: nn.RNNBase, frames: Tensor) -> Tensor:
    with torch.autocast(frames.device.type, enabled=False):
        states: Tensor = rnn(frames.float())[0]
    return states


def _widened(lstm: nn.LSTM, frames: Tensor) -> Tensor:
    """The same LSTM with zeros beside its weights where a size is odd; a unit of zeros stays at zero.

    Of odd sizes, as the paper's 1027 is, oneDNN's bfloat16 LSTM takes twice the time in training and four times in
    evaluation (measured with AMX, 32 clips, 64 to 1,027 units).
    """
    hidden = lstm.hidden_size
    wide_input, wide = (-(-n // _MULTIPLE) * _MULTIPLE if n % 2 else n for n in (lstm.input_size, hidden))
    if (wide_input, wide) == (lstm.input_size, hidden) or not hasattr(
        torch, "lstm"
    ):  # a function that torch has, and does not document
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
