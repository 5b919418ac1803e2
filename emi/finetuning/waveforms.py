"""Augmentation of waveforms: speed, gain and noise, each off by default and drawn clip by clip."""

import torch
import torchaudio
from torch import Tensor

from emi.finetuning.settings import FinetuneSettings
from extract.settings import SAMPLE_RATE

SNR_SPREAD_DB = 20.0


class WaveformAugment:
    """Changes waveforms at random.

    Speed is resampling, so pitch moves with it (Ko et al., Interspeech 2015, whose factors are 0.9, 1 and 1.1).

    Args:
        settings: which and how much.
    """

    def __init__(self, settings: FinetuneSettings) -> None:
        self._settings = settings
        share = round(settings.speed, 2)
        rates = [round(SAMPLE_RATE * factor) for factor in (1 - share, 1 + share)] if share else []
        # torchaudio's kernel grows with rate / gcd: whole hundredths of 16 kHz keep it small
        self._speeds = [torchaudio.transforms.Resample(rate, SAMPLE_RATE) for rate in rates]

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """(samples,) float32 to another (samples,); as many samples more or fewer as the speed asks for."""
        s = self._settings
        if self._speeds:
            which = int(torch.randint(len(self._speeds) + 1, (), generator=generator))
            if which:
                waveform = self._speeds[which - 1](waveform)
        if s.gain_db:
            drawn = float(torch.rand((), generator=generator))
            waveform = waveform * 10 ** (s.gain_db * (2 * drawn - 1) / 20)
        if s.noise_snr:
            snr = s.noise_snr + SNR_SPREAD_DB * float(torch.rand((), generator=generator))
            noise = torch.randn(waveform.shape, generator=generator)
            waveform = waveform + noise * waveform.square().mean().sqrt() * 10 ** (-snr / 20)
        return waveform
