"""The front end of VGGish: log-mel spectra, as `mel_features.py` of its authors computes them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.settings import SAMPLE_RATE

WINDOW, STEP, FFT = 400, 160, 512
"""Samples of a spectrum (25 ms), from one to the next (10 ms), and of its Fourier transform, zero-padded."""
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
OFFSET = 0.01
"""Added to mel magnitudes before their logarithm."""
BLOCK = 1024
"""Spectra computed at a time: 13 MB of float64."""


class LogMel:
    """Maps sound to spectra. Computes in float64: in float32, a loud tone would hide quiet bands by 1e-3.

    Args:
        device: to compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self._window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64, device=device)
        self._mel = torch.from_numpy(mel_matrix()).to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        """(samples,) float32 at 16 kHz → ((samples - 400) // 160 + 1, 64) float32."""
        frames = samples.unfold(0, WINDOW, STEP)
        return torch.cat([self._block(block) for block in frames.split(BLOCK)])

    def _block(self, frames: Tensor) -> Tensor:
        magnitudes = torch.fft.rfft(frames.double() * self._window, FFT).abs()
        return (magnitudes @ self._mel).add_(OFFSET).log_().float()


def mel_matrix() -> NDArray[np.float64]:
    """Return (257 frequencies, 64 bands): triangles of height 1 whose sides are straight on the mel scale."""
    mel = _mel(np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(_mel(np.array(LOWEST_HZ)), _mel(np.array(HIGHEST_HZ)), BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0.0, np.minimum((mel - lower) / (centre - lower), (upper - mel) / (upper - centre)))


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(hertz / 700.0)
