"""Run torch's LSTM in the precision that the machine has for it."""

import functools
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cache.machine import bfloat16_unit


def lstm_states(lstm: nn.Module, frames: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, frames, hidden), the states of the last layer of a batch-first `nn.LSTM`.

    On processors that cannot multiply bfloat16, oneDNN has no LSTM in it, and torch raises ("could not create a
    primitive descriptor"; torch 2.11 on Zen 3): there, `torch.autocast` is left and the LSTM runs in float32.
    """
    plain = frames.device.type == "cpu" and not _multiplies_bfloat16()
    with torch.autocast("cpu", enabled=False) if plain else nullcontext():
        states: Tensor = lstm(frames.float() if plain else frames)[0]
    return states


@functools.cache
def _multiplies_bfloat16() -> bool:
    return bfloat16_unit() is not None
