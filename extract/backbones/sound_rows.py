"""Rows of sound that start at any time, to 10 ms: at a fixed hop, or with the frames of a video."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from extract.audio.timed_sound import TimedSound
from extract.settings import SAMPLE_RATE

STEP = 160
"""Samples from one point of the grid, on which rows start, to the next: 10 ms."""
Sound = Tensor | TimedSound


def row_starts(hop_seconds: float, samples: int) -> Tensor:
    """Return (rows,) grid points round(100 i hop) of all rows i that start within the samples, of one at least."""
    count = max(1, math.ceil(samples / SAMPLE_RATE / hop_seconds - 1e-9))
    return (torch.arange(count, dtype=torch.float64) * (100 * hop_seconds)).round().long()


def starts_at(times: Tensor) -> Tensor:
    """Return (rows,) grid points of rows with these (rows, 2) starts and ends in seconds."""
    return (times[:, 0].double() * 100).round().long().clamp(min=0)


def placed(sound: Sound, hop_seconds: float) -> tuple[Tensor, Tensor]:
    """Return the samples of a clip and the grid points at which its rows start.

    Args:
        sound: with the times of its rows, or without.
        hop_seconds: from one row to the next, where it has no times.
    """
    if isinstance(sound, TimedSound):
        return sound.samples, starts_at(sound.times)
    return sound, row_starts(hop_seconds, len(sound))


def times_of(sounds: Sequence[Sound]) -> Tensor | None:
    """Return the (total rows, 2) times of all rows, where clips have such."""
    times = [sound.times for sound in sounds if isinstance(sound, TimedSound)]
    return torch.cat(times) if times else None


def padded(samples: Tensor, size: int) -> Tensor:
    """Return samples with zeros at their end, so that they are as many as `size`, and a whole number of steps."""
    whole = -(-max(len(samples), size) // STEP) * STEP
    return functional.pad(samples, (0, whole - len(samples)))
