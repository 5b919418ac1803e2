"""Decoding against known samples: every container, sample format, rate and channel count."""

import av
import numpy as np
import pytest
import torch
import torchaudio

from extract.audio.media import decode, resample
from extract.audio.track import Track
from extract.settings import SAMPLE_RATE

LOSSLESS = [
    (".wav", "pcm_u8"),
    (".wav", "pcm_s16le"),
    (".wav", "pcm_s24le"),
    (".wav", "pcm_s32le"),
    (".wav", "pcm_f32le"),
    (".wav", "pcm_f64le"),
    (".flac", "flac"),
]
LOSSY = [".mp3", ".ogg", ".m4a", ".mp4", ".mkv", ".webm"]
RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000]
ODD = 44101


def oracle(kept, rate):
    """(samples,) float64 at 16 kHz: NumPy's mean of the channels, torchaudio's resampler."""
    return torchaudio.functional.resample(torch.from_numpy(kept.mean(axis=0)), rate, SAMPLE_RATE).numpy()


def aligned(samples, expected):
    """Both without the encoder's delay, found by their cross-correlation; at most 0.1 s."""
    size = len(samples) + len(expected)
    product = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(expected, size).conj(), size)
    delay = int(np.argmax(product[:1600]))
    n = min(len(samples) - delay, len(expected))
    return samples[delay : delay + n], expected[:n]


@pytest.mark.parametrize(("suffix", "codec"), LOSSLESS)
def test_lossless_audio_is_the_mean_of_its_channels_resampled(tmp_path, media, suffix, codec):
    path = tmp_path / f"x{suffix}"
    kept = media.write(path, media.tones(0.5, 44100, 2), 44100, codec)
    waveform = decode(path)
    assert waveform.samples.dtype == np.float32
    np.testing.assert_allclose(waveform.samples, oracle(kept, 44100), rtol=0, atol=2e-6)
    assert waveform.seconds == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", RATES)
def test_every_rate_and_channel_count_gives_the_same_sound(tmp_path, media, rate, channels):
    kept = media.write(tmp_path / "x.wav", media.tones(0.4, rate, channels), rate)
    np.testing.assert_allclose(decode(tmp_path / "x.wav").samples, oracle(kept, rate), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rate", [*RATES, ODD])
def test_a_tone_keeps_its_pitch_phase_and_loudness(tmp_path, media, rate):
    media.write(tmp_path / "x.wav", media.tones(0.4, rate), rate, "pcm_f32le")
    samples = decode(tmp_path / "x.wav").samples
    assert len(samples) == 0.4 * SAMPLE_RATE
    inside = slice(200, -200)
    expected = media.tone_at(np.arange(len(samples)) / SAMPLE_RATE, 0)
    np.testing.assert_allclose(samples[inside], expected[inside], rtol=0, atol=2e-3)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_audio_is_close_to_what_was_encoded(tmp_path, media, suffix, channels):
    original = np.stack([media.speech(1.5, seed) for seed in range(channels)])
    media.write(tmp_path / f"x{suffix}", original, 16000)
    samples, expected = aligned(decode(tmp_path / f"x{suffix}").samples, original.mean(axis=0))
    assert len(expected) == len(original[0])
    assert np.corrcoef(samples, expected)[0, 1] > 0.97
    assert samples.std() == pytest.approx(expected.std(), rel=0.1)


def test_equal_channels_are_not_made_louder(tmp_path, media):
    one = media.tones(0.3, 16000, 1)
    for channels in (2, 6):
        media.write(tmp_path / "x.wav", np.repeat(one, channels, axis=0), 16000, "pcm_f32le")
        np.testing.assert_allclose(decode(tmp_path / "x.wav").samples, one[0], rtol=0, atol=1e-6)


def test_an_upper_case_suffix_and_a_name_with_a_colon_are_read(tmp_path, media):
    for name in ("X.WAV", "http:x.wav", "a b%20#?.wav", "ü.wav"):
        media.write(tmp_path / "plain.wav", media.tones(0.1))
        (tmp_path / "plain.wav").rename(tmp_path / name)
        assert len(decode(tmp_path / name).samples) == 1600


@pytest.mark.parametrize("rate", [8000, 16000, 44100, ODD, 48000])
def test_cutting_equals_decoding_everything_and_cutting_then(tmp_path, media, rate):
    media.write(tmp_path / "x.wav", media.tones(1.0, rate, 2), rate, "pcm_f32le")
    whole, cut = decode(tmp_path / "x.wav"), decode(tmp_path / "x.wav", 0.3337)
    assert len(cut.samples) == round(0.3337 * SAMPLE_RATE)
    np.testing.assert_allclose(cut.samples, whole.samples[: len(cut.samples)], rtol=0, atol=1e-6)
    assert cut.seconds == whole.seconds == pytest.approx(1.0)


@pytest.mark.parametrize("rate", [8000, 44100, ODD])
def test_a_cut_at_the_end_of_a_decoded_frame_still_sees_beyond_it(tmp_path, media, rate):
    """The resampler's filter needs samples behind the cut, which the frames decoded so far would not hold."""
    media.write(tmp_path / "x.wav", media.tones(1.0, rate), rate, "pcm_f32le")
    with av.open(str(tmp_path / "x.wav")) as file:
        seconds = next(file.decode(audio=0)).samples / rate
    whole, cut = decode(tmp_path / "x.wav"), decode(tmp_path / "x.wav", seconds)
    np.testing.assert_allclose(cut.samples, whole.samples[: len(cut.samples)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".flac", *LOSSY])
def test_the_cut_changes_neither_the_sound_before_it_nor_the_stated_length(tmp_path, media, suffix):
    media.write(tmp_path / f"x{suffix}", media.tones(2.0, 48000, 2), 48000)
    whole, cut = decode(tmp_path / f"x{suffix}"), decode(tmp_path / f"x{suffix}", 0.7)
    assert len(cut.samples) == 0.7 * SAMPLE_RATE
    np.testing.assert_allclose(cut.samples, whole.samples[: len(cut.samples)], rtol=0, atol=1e-6)
    assert whole.seconds == pytest.approx(2.0, abs=0.1)
    assert cut.seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", *LOSSY])
def test_damage_behind_the_cut_is_ignored(tmp_path, media, suffix):
    path = tmp_path / f"x{suffix}"
    media.write(path, media.tones(4.0, 48000), 48000)
    expected = decode(path, 1.0)
    content = bytearray(path.read_bytes())
    damaged = slice(int(0.6 * len(content)), int(0.8 * len(content)))
    content[damaged] = np.random.default_rng(0).bytes(len(content[damaged]))
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path, 1.0).samples, expected.samples)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".mkv", ".webm"])
def test_a_file_cut_off_behind_the_cut_is_read(tmp_path, media, suffix):
    path = tmp_path / f"x{suffix}"
    media.write(path, media.tones(4.0, 48000), 48000)
    expected = decode(path, 1.0)
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    np.testing.assert_array_equal(decode(path, 1.0).samples, expected.samples)


def test_decoding_stops_at_the_cut(tmp_path, media, monkeypatch):
    media.write(tmp_path / "x.wav", media.tones(20.0), 16000)
    decoded = []

    def counted(track, frames=Track.frames):
        for frame in frames(track):
            decoded.append(frame.samples)
            yield frame

    monkeypatch.setattr(Track, "frames", counted)
    assert decode(tmp_path / "x.wav", 1.0).seconds == 20.0
    assert 16000 <= sum(decoded) <= 1.1 * 16000 + max(decoded)


def test_a_single_sample_is_a_clip(tmp_path, media):
    for rate in (8000, 16000, 96000):
        media.write(tmp_path / "x.wav", np.full((1, 1), 0.5), rate)
        waveform = decode(tmp_path / "x.wav")
        assert len(waveform.samples) == -(-SAMPLE_RATE // rate)
        assert waveform.seconds == 1 / rate


def test_resampling_leaves_16_khz_alone_and_keeps_silence_silent():
    samples = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert resample(samples, 16000) is samples
    for rate in (8000, 44100, ODD):
        assert not resample(np.zeros(1000, np.float32), rate).any()
