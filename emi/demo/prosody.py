"""Shape the waveform of plain speech: timbre, breath, laughter, loudness, noise."""

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]
Signal = NDArray[np.float64]

# Voices differ in timbre more than emotions move it: unlevelled, a ridge regression on 160 clips reaches a Pearson of
# 0.56 for a smile of 15 dB in an unknown voice, levelled by 0.6 it reaches 0.77. What is left tells voices apart.
LEVELLING = 0.85
LEVELLING_LIMIT_DB = 30.0  # a band in which a voice has nothing is not to be filled with its rounding noise
BAND_EDGES_HZ = 90.0 * 2.0 ** (np.arange(21) / 3)  # third octaves, 90 Hz to 9.1 kHz
BAND_CENTRES_HZ = np.sqrt(BAND_EDGES_HZ[1:] * BAND_EDGES_HZ[:-1])

LAUGH_HZ = 8.0
LAUGH_BREATH = 0.8  # noise in the gaps of the laughter, as in "ha-ha", relative to the voice


def shape_waveform(speech: Waveform, rate: int, style: dict[str, float], rng: np.random.Generator) -> Waveform:
    """Give plain speech the parts of a style that espeak-ng cannot.

    Args:
        speech: float32 of shape (samples,), as ``Speaker.say`` returns it.
        rate: its sample rate in Hz.
        style: one value per dial, from ``draw_style``.
        rng: where phases and noise come from.

    Returns:
        float32 of shape (samples,), within [-1, 1].
    """
    samples = len(speech)
    voice = _equalise(speech, rate, style)
    voice /= _active_level(voice, rate) + 1e-9
    envelope = _envelope(voice, rate)
    voice += style["breath"] * envelope * _band_noise(samples, rate, 4500, 7500, rng)
    gaps = style["laugh"] * (0.5 - 0.5 * np.cos(2 * np.pi * (LAUGH_HZ / rate * np.arange(samples) + rng.random())))
    voice *= 1 - gaps
    voice += LAUGH_BREATH * gaps * _envelope(envelope, rate) * _band_noise(samples, rate, 300, 1200, rng)
    voice *= 10 ** ((style["loudness"] + style["swell"] * np.linspace(-0.5, 0.5, samples)) / 20)
    voice += 10 ** (style["room"] / 20) * _band_noise(samples, rate, 100, 4000, rng)
    return np.tanh(voice).astype(np.float32)


def _equalise(speech: Waveform, rate: int, style: dict[str, float]) -> Signal:
    """Bring the voices close to one long-term spectrum, then colour it."""
    size = _fft_size(len(speech))
    spectrum = np.fft.rfft(speech, size)
    hertz = np.fft.rfftfreq(size, 1 / rate)
    power = np.add.reduceat(np.abs(spectrum) ** 2, np.searchsorted(hertz, BAND_EDGES_HZ))[:-1]
    own_db = 10 * np.log10(power / np.diff(BAND_EDGES_HZ) + 1e-9)
    common_db = -6 * np.maximum(np.log2(BAND_CENTRES_HZ / 500), 0)  # speech falls about 6 dB per octave
    level_db = common_db - own_db
    level_db = np.clip(level_db - np.median(level_db), -LEVELLING_LIMIT_DB, LEVELLING_LIMIT_DB)
    octaves = np.log2(np.maximum(hertz, 20.0))
    gain_db = LEVELLING * np.interp(octaves, np.log2(BAND_CENTRES_HZ), level_db)
    for name, centre_hz, width in (("chest", 180, 0.4), ("warmth", 400, 0.35), ("smile", 2800, 0.6)):
        gain_db += style[name] * np.exp(-0.5 * ((octaves - np.log2(centre_hz)) / width) ** 2)
    gain_db -= style["dullness"] / (1 + np.exp(-4 * (octaves - np.log2(1200))))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), size)[: len(speech)]


def _active_level(voice: Signal, rate: int) -> float:
    """RMS over the louder half of 20 ms blocks, so that pauses do not count."""
    block = rate // 50
    blocks = voice[: len(voice) // block * block].reshape(-1, block)
    power = np.sort((blocks**2).mean(axis=1))
    return float(np.sqrt(power[len(power) // 2 :].mean()))


def _envelope(voice: Signal, rate: int) -> Signal:
    """Mean magnitude over 30 ms around each sample, shape (samples,)."""
    width = rate * 30 // 1000
    total = np.cumsum(np.pad(np.abs(voice), (width // 2 + 1, width - width // 2 - 1)))
    return (total[width:] - total[:-width]) / width


def _band_noise(samples: int, rate: int, low_hz: float, high_hz: float, rng: np.random.Generator) -> Signal:
    """Noise of unit power between two frequencies, shape (samples,)."""
    size = _fft_size(samples)
    hertz = np.fft.rfftfreq(size, 1 / rate)
    inside = (hertz >= low_hz) & (hertz <= high_hz)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples), size) * inside, size)[:samples]
    return noise / (noise.std() + 1e-9)


def _fft_size(samples: int) -> int:
    """Next power of two: a length with a large prime factor takes ten times as long."""
    return 1 << (samples - 1).bit_length()
