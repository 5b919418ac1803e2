"""Resample sound to 16 kHz, whole or in blocks. Importing this module imports no torch."""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.settings import SAMPLE_RATE

MARGIN_SECONDS = 0.1
"""Decoded beyond a cut, so that the resampler's filter sees there what it would see in the whole file."""
# Samples that the filter reaches at the lowest rates: seven, with room.
_MARGIN_SAMPLES = 16
# Coefficients of torchaudio's resampling kernel above which its memory (4 bytes each, several copies) explodes.
_KERNEL_LIMIT = 1 << 24


def resample(mono: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Resample (samples,) float32 from `rate` Hz to 16 kHz.

    Rates without a large common divisor with 16 kHz (44,101 Hz, say) would need a kernel of gigabytes. SciPy's
    polyphase filter resamples them.
    """
    if rate == SAMPLE_RATE:
        return mono
    divisor = math.gcd(rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // divisor, rate // divisor
    if up * down > _KERNEL_LIMIT:
        from scipy.signal import resample_poly

        out = resample_poly(mono.astype(np.float64), up, down, window=_lowpass(max(up, down)))
        return np.asarray(out, dtype=np.float32)
    import torch

    with torch.inference_mode():
        return np.asarray(_resampler(rate)(torch.from_numpy(mono)).numpy())


def resample_blocks(blocks: Iterable[NDArray[np.float32]], rate: int) -> Iterator[NDArray[np.float32]]:
    """Resample sound that comes in blocks; together the result equals that of `resample`, up to rounding."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    divisor = math.gcd(rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // divisor, rate // divisor  # `down` samples become `up`
    margin = -(-max(round(MARGIN_SECONDS * rate), _MARGIN_SAMPLES) // down)
    held, before = np.zeros(0, np.float32), 0  # sound, and how many times `down` samples of it are only context
    for block in blocks:
        held = np.concatenate([held, block])
        ready = len(held) // down - margin  # up to here the filter sees all it needs
        if ready > before:
            yield resample(held[: (ready + margin) * down], rate)[before * up : ready * up]
            kept = max(0, ready - margin)
            held, before = held[kept * down :], ready - kept
    yield resample(held, rate)[before * up :]


@functools.lru_cache(maxsize=4)
def _lowpass(factor: int) -> NDArray[np.float64]:
    """Design SciPy's default filter for `resample_poly`, which takes seconds for a long one."""
    from scipy.signal import firwin

    return np.asarray(firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)))


@functools.lru_cache(maxsize=32)
def _resampler(rate: int) -> Any:
    """Build a resampler, which takes up to 160 ms."""
    import torchaudio

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)
