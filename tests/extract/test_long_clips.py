"""Whole clips (`--max-seconds none`): those that are too long to hold are decoded and computed in blocks."""

import subprocess
import sys
import wave

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
import extract.long_clips
from cache import StaleCacheError, open_cache
from emi.cli import app
from extract.audio.media import decode
from extract.audio.modality import Audio
from extract.audio.recording import SoundRecording
from extract.audio.resampling import resample, resample_blocks
from extract.errors import MediaError
from extract.settings import DEFAULT, DecodeOptions


@pytest.fixture
def held(monkeypatch):
    """Set how many seconds of a clip are held."""

    def hold(seconds):
        monkeypatch.setattr(Audio, "longest_held", seconds)
        monkeypatch.setattr("extract.audio.recording.BLOCK_SECONDS", 0.25)

    return hold


@pytest.mark.parametrize("rate", [100, 8000, 11_025, 16_000, 44_100, 44_101, 48_000, 96_000])
@pytest.mark.parametrize("block", [0.03, 0.4, 9.0])
def test_resampling_in_blocks_equals_resampling_the_whole(media, rate, block):
    samples = media.tones(3.1, rate)[0].astype(np.float32)
    size = max(1, round(block * rate))
    blocks = [samples[i : i + size] for i in range(0, len(samples), size)]
    found = np.concatenate(list(resample_blocks(blocks, rate)))
    np.testing.assert_allclose(found, resample(samples, rate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".mkv"])
def test_a_recording_gives_the_sound_of_the_whole_file_and_its_length(tmp_path, media, suffix, held):
    held(0.5)
    media.write(tmp_path / f"x{suffix}", media.tones(3.3, 48_000, 2), 48_000)
    recording, whole = SoundRecording(tmp_path / f"x{suffix}", DEFAULT), decode(tmp_path / f"x{suffix}", None)
    blocks = list(recording)
    assert len(blocks) > 5
    np.testing.assert_allclose(np.concatenate(blocks), whole.samples, rtol=0, atol=1e-6)
    assert recording.seconds == whole.seconds == pytest.approx(3.3, abs=0.1)


def test_a_recording_that_is_cut_off_is_refused_at_its_end_or_used_as_the_options_say(tmp_path, media, held):
    held(0.5)
    media.write(tmp_path / "x.wav", media.tones(3.0))
    (tmp_path / "x.wav").write_bytes((tmp_path / "x.wav").read_bytes()[:64_000])
    with pytest.raises(MediaError, match=r"is truncated: it ends after 2\.00 s"):
        list(SoundRecording(tmp_path / "x.wav", DEFAULT))
    recording = SoundRecording(tmp_path / "x.wav", DecodeOptions(allow_truncated=True))
    assert sum(map(len, recording)) == pytest.approx(32_000, abs=60)
    assert "is truncated" in recording.cut_off


@pytest.fixture
def sounds(tmp_path, media):
    """Clips of 0.3 to 4.2 s."""
    (tmp_path / "sounds").mkdir()
    for i, seconds in enumerate((0.3, 4.2, 1.1, 0.4, 2.0)):
        media.write(tmp_path / "sounds" / f"{i}.wav", media.speech(seconds, i))
    return tmp_path / "sounds"


@pytest.mark.parametrize("backbone", ["silero", "tiny"])
def test_long_clips_have_the_features_of_clips_that_are_held(tmp_path, sounds, tiny, held, backbone):
    if backbone == "tiny":  # which needs them whole
        tiny.save_audeering(tmp_path / "tiny")
        backbone = str(tmp_path / "tiny")
    how = {"backbone": backbone, "dtype": "float32", "precision": "fp32", "max_seconds": None}
    emi.extract(sounds, tmp_path / "held.zarr", **how)
    held(1.0)
    summary = emi.extract(sounds, tmp_path / "blocks.zarr", **how)
    assert (summary.written, summary.failures, summary.seconds) == (5, [], pytest.approx(8.0))
    with open_cache(tmp_path / "held.zarr") as whole, open_cache(tmp_path / "blocks.zarr") as blocks:
        assert whole.fingerprint == blocks.fingerprint
        for name in whole.ids:
            a, b = whole[name], blocks[name]
            np.testing.assert_allclose(a.frames, b.frames, rtol=0, atol=2e-4)  # of another batch
            assert a.seconds == b.seconds
            assert (a.vad is None) == (b.vad is None)
            if a.vad is not None:
                np.testing.assert_allclose(a.vad, b.vad, rtol=0, atol=2e-4)
                np.testing.assert_allclose(a.vad_pooled, b.vad_pooled, rtol=0, atol=2e-4)
    assert emi.extract(sounds, tmp_path / "blocks.zarr", **how).present == 5


def test_whole_clips_and_cut_ones_are_not_mixed(tmp_path, sounds):
    emi.extract(sounds, tmp_path / "cut.zarr")
    with pytest.raises(StaleCacheError, match=r"max_seconds \(stored 12\.0, wanted absent\)"):
        emi.extract(sounds, tmp_path / "cut.zarr", max_seconds=None)
    emi.extract(sounds, tmp_path / "whole.zarr", max_seconds=None)
    with open_cache(tmp_path / "whole.zarr") as store:
        assert "max_seconds" not in store.fingerprint


def test_a_long_clip_that_cannot_be_read_is_a_failure_and_the_others_are_written(tmp_path, sounds, media, held):
    held(1.0)
    content = (sounds / "1.wav").read_bytes()
    (sounds / "1.wav").write_bytes(content[: len(content) // 2])
    late = media.speech(3.0)
    late[40_000] = np.nan
    media.write(sounds / "4.wav", late, codec="pcm_f32le")
    summary = emi.extract(sounds, tmp_path / "f.zarr", max_seconds=None)
    assert {f.id: f.reason.partition(" (")[0] for f in summary.failures} == {
        "1": "is truncated: it ends after 2.10 s in the middle of its data",
        "4": "has samples that are not finite",
    }
    assert summary.written == 3
    summary = emi.extract(sounds, tmp_path / "f.zarr", max_seconds=None, allow_truncated=True)
    assert [note.id for note in summary.truncated] == ["1"]


def test_a_long_clip_that_would_fill_the_memory_is_a_failure_that_says_what_to_do(
    tmp_path, sounds, tiny, held, monkeypatch
):
    held(1.0)
    tiny.save_audeering(tmp_path / "tiny")
    monkeypatch.setattr(extract.long_clips, "memory_bytes", lambda: 3 * Audio.bytes_per_second)
    summary = emi.extract(sounds, tmp_path / "f.zarr", backbone=str(tmp_path / "tiny"), max_seconds=None)
    assert summary.written == 4
    ((name, reason),) = [(failure.id, failure.reason) for failure in summary.failures]
    assert name == "1"
    assert reason.startswith("is longer than 3 s, and this backbone computes whole clips")
    assert "--max-seconds" in reason


def test_the_command_takes_none_and_numbers(tmp_path, sounds):
    def command(*options, code=0):
        result = CliRunner().invoke(app, ["extract", str(sounds), "--cache", *map(str, options)])
        assert result.exit_code == code, result.output
        return result.output

    assert "whole clips" in command(tmp_path / "f.zarr", "--max-seconds", "none")
    shown = command(tmp_path / "g.zarr", "--max-seconds", "none", "--dry-run")
    assert "audio: 0.0022 h\n" in shown
    assert "first 0.5 s of each clip" in command(tmp_path / "h.zarr", "--max-seconds", "0.5")
    assert "max-seconds" in command(tmp_path / "i.zarr", "--max-seconds", "all", code=2)


def test_a_run_on_whole_clips_predicts_whole_clips(tmp_path, labelled, held):
    emi.extract(labelled / "audio", tmp_path / "f.zarr", max_seconds=None)
    run = tmp_path / "run"
    emi.train_head(tmp_path / "f.zarr", labelled / "train.csv", labelled / "valid.csv", run, epochs=1, hidden=8)
    whole = emi.load(run).predict(labelled / "audio/00030.wav")
    held(0.1)
    assert emi.load(run).predict(labelled / "audio/00030.wav")[0] == pytest.approx(whole[0], abs=1e-5)


HOUR = """
import sys, emi
summary = emi.extract(sys.argv[1], sys.argv[2], backbone="silero", max_seconds=None)
assert not summary.failures, summary.failures
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(folder, minutes) -> float:
    """Peak memory of a process that extracts one recording in 44.1 kHz stereo."""
    folder.mkdir()
    second = (3000 * np.random.default_rng(0).standard_normal(88_200)).astype("<i2").tobytes()
    with wave.open(str(folder / "long.wav"), "wb") as file:
        file.setparams((2, 2, 44_100, 0, "NONE", ""))
        for _ in range(60 * minutes):
            file.writeframes(second)
    command = [sys.executable, "-c", HOUR, str(folder), str(folder / "f.zarr")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_its_features_and_not_of_its_sound(tmp_path):
    two_minutes, hour = peak_mib(tmp_path / "short", 2), peak_mib(tmp_path / "long", 60)
    with open_cache(tmp_path / "long" / "f.zarr") as store:
        frames = store["long"].frames
        assert store["long"].seconds == 3600.0
        assert frames.shape == (112_500, 384)
    print(f"{two_minutes:.0f} MiB for two minutes, {hour:.0f} MiB for an hour")
    # measured: 1.3 times the features; the sound as decoded would be 1.2 GiB
    assert hour < two_minutes + 2 * frames.nbytes / 2**20
