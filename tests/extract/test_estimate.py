"""Estimates: clips are counted, lengths read from headers, speed is measured, and nothing is written."""

import os
import wave

import pytest

import emi
from cache.reader import open_cache
from extract import estimate as module
from extract.audio.media import header_seconds
from extract.estimate import estimate
from extract.plan import plan
from extract.settings import ExtractSettings

SECONDS = (0.5, 1.0, 1.5, 2.0, 15.0)


@pytest.fixture
def media(tmp_path):
    """Five clips, the last longer than the cut."""
    (tmp_path / "media").mkdir()
    for number, seconds in enumerate(SECONDS):
        with wave.open(str(tmp_path / "media" / f"{number:05d}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * round(seconds * 16_000)))
    return tmp_path / "media"


def ticking(step: float):
    """A clock that advances at each call."""
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def test_an_estimate_counts_hours_bytes_and_minutes_and_writes_nothing(media, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ExtractSettings()
    cache = tmp_path / "c.zarr"
    found = estimate(plan(media, cache, settings), settings, ticking(2.0))
    assert (found.clips, found.present, found.silent) == (5, 0, 0)
    assert found.seconds == pytest.approx(0.5 + 1.0 + 1.5 + 2.0 + 12.0)
    assert found.minutes == pytest.approx(2.0 / 60, rel=0.05)  # all clips were measured, in two seconds
    assert sorted(os.listdir(tmp_path)) == ["media"]
    emi.extract(media, cache)
    with open_cache(cache) as store:
        frames = store.num_frames.sum() * store.dim * 2
    assert found.bytes == pytest.approx(frames, rel=0.1)
    text = found.text().splitlines()
    assert text[0] == "clips: 5 to do, 0 present"
    assert text[1] == "audio: 0.0047 h after the cut"
    assert text[3].startswith("time: about 0.1 min or less (measured on 5 clips: 17.")


def test_present_clips_are_not_counted_and_no_backbone_is_loaded_where_all_are_present(media, tmp_path, monkeypatch):
    cache, settings = tmp_path / "c.zarr", ExtractSettings()
    emi.extract(media / "00004.wav", cache)
    found = estimate(plan(media, cache, settings), settings)
    assert (found.clips, found.present) == (4, 1)
    assert found.seconds == pytest.approx(5.0)
    emi.extract(media, cache)
    monkeypatch.setattr("extract.clips.load_extractor", lambda *_: pytest.fail("a backbone was loaded"))
    assert estimate(plan(media, cache, settings), settings).text() == "clips: 0 to do, 5 present"


def test_of_many_files_a_sample_is_read_and_the_figures_are_marked_as_estimates(media, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    settings = ExtractSettings()
    found = estimate(plan(media, tmp_path / "c.zarr", settings), settings)
    assert found.looked_at == 3
    assert found.seconds == pytest.approx(5 * (0.5 + 1.5 + 12.0) / 3)
    assert "audio: about 0.0065 h after the cut (from 3 files' headers)" in found.text()


def test_files_that_cannot_be_read_are_counted_and_figures_may_be_unknown(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.wav").write_bytes(b"not media")
    settings = ExtractSettings()
    found = estimate(plan(tmp_path / "media", tmp_path / "c.zarr", settings), settings)
    assert (found.silent, found.seconds, found.bytes, found.minutes) == (1, None, None, None)
    text = found.text()
    assert "audio: unknown; 1 of 1 files state no length, or cannot be opened" in text
    assert "disk: unknown" in text
    assert "time: unknown (not measured: " in text
    assert "a.wav is not a media file" in text


def test_the_time_of_a_cluster_is_not_measured(media, tmp_path):
    settings = ExtractSettings(engine="ray")
    planned = plan(media, tmp_path / "c.zarr", ExtractSettings())
    found = estimate(planned, settings)
    assert found.minutes is None
    assert found.bytes is not None
    assert "not measured: the cluster's machines do the work" in found.text()


def test_the_length_in_a_header_is_read_or_none(media, tmp_path):
    assert header_seconds(media / "00003.wav") == pytest.approx(2.0)
    assert header_seconds(media / "00003.wav", 2) is None  # it has one track
    assert header_seconds(tmp_path / "none.wav") is None
