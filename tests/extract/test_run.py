"""Whole extractions with the silero backbone: what a cache holds, when it is refused, what a run reports."""

import shutil
import threading

import numpy as np
import pytest
import torch

import emi
import extract.plan
from cache import CacheFormatError, StaleCacheError, open_cache
from extract import run
from extract.audio.media import decode
from extract.backbones.silero.family import SileroFamily
from extract.errors import BackboneError, ExtractSettingsError, MediaListError
from extract.settings import ExtractSettings


@pytest.fixture
def made(tmp_path, clips):
    """A cache of the ten clips."""
    emi.extract(clips, tmp_path / "made.zarr")
    return tmp_path / "made.zarr"


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr(SileroFamily, "load", lambda *_: pytest.fail("the backbone was loaded"))


def test_a_cache_holds_the_backbones_features_of_each_clip(tmp_path, clips, load):
    summary = emi.extract(clips, tmp_path / "f.zarr", dtype="float32")
    backbone, _ = load("silero")
    with open_cache(tmp_path / "f.zarr") as store:
        assert len(store) == summary.written == 10
        assert set(store.ids) == {p.relative_to(clips).with_suffix("").as_posix() for p in clips.rglob("*.wav")}
        assert (store.dim, store.hop_seconds, store.vad_names) == (384, 0.032, ())
        for name in store.ids:
            waveform = decode(clips / f"{name}.wav")
            with torch.inference_mode():
                expected = backbone([torch.from_numpy(waveform.samples)]).frames.numpy()
            assert store[name].frames.dtype == np.float32
            np.testing.assert_allclose(store[name].frames, expected, rtol=1e-4, atol=1e-4)
            assert store[name].seconds == waveform.seconds
            assert store[name].vad is None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_zarr_and_hdf5_hold_the_same_bytes(tmp_path, clips, read_cache, dtype):
    for name in ("f.zarr", "f.h5"):
        emi.extract(clips, tmp_path / name, dtype=dtype)
    assert read_cache(tmp_path / "f.zarr") == read_cache(tmp_path / "f.h5")
    with open_cache(tmp_path / "f.zarr") as a, open_cache(tmp_path / "f.h5") as b:
        assert a.fingerprint == b.fingerprint
        assert a.header == b.header


def test_float16_is_float32_rounded(tmp_path, clips):
    for dtype in ("float16", "float32"):
        emi.extract(clips, tmp_path / f"{dtype}.h5", dtype=dtype)
    with open_cache(tmp_path / "float16.h5") as small, open_cache(tmp_path / "float32.h5") as large:
        for name in small.ids:
            np.testing.assert_array_equal(small[name].frames, large[name].frames.astype(np.float16))


def test_a_checkpoint_with_a_regression_head_fills_vad_in_both_containers(tmp_path, clips, tiny, load, read_cache):
    tiny.save_audeering(tmp_path / "model")
    for name in ("f.zarr", "f.h5"):
        emi.extract(clips, tmp_path / name, backbone=str(tmp_path / "model"), max_seconds=0.5, precision="fp32")
    assert read_cache(tmp_path / "f.zarr") == read_cache(tmp_path / "f.h5")
    backbone, _ = load(tmp_path / "model")
    with open_cache(tmp_path / "f.h5") as store:
        assert store.vad_names == ("arousal", "dominance", "valence")
        clip = store["00002"]
        with torch.inference_mode():
            expected = backbone([torch.from_numpy(decode(clips / "00002.wav", 0.5).samples)])
        np.testing.assert_allclose(clip.frames, expected.frames, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(clip.vad, expected.vad, rtol=0, atol=2e-4)
        np.testing.assert_allclose(clip.vad_pooled, expected.vad_pooled[0], rtol=0, atol=2e-4)
        assert len(clip.frames) == 24
        assert clip.seconds == 1.4


def test_the_cut_bounds_the_frames_and_not_the_seconds(tmp_path, clips):
    emi.extract(clips, tmp_path / "f.zarr", max_seconds=0.32)
    with open_cache(tmp_path / "f.zarr") as store:
        assert max(len(store[name].frames) for name in store.ids) == 10
        assert store["00002"].seconds == 1.4


def test_a_second_run_has_nothing_to_do_and_does_not_load_the_backbone(made, clips, no_loading):
    before = files(made)
    summary = emi.extract(clips, made)
    assert (summary.written, summary.present, summary.failures) == (0, 10, [])
    assert files(made) == before


def test_new_clips_are_added_to_a_cache(made, clips, tmp_path, read_cache):
    before = read_cache(made)
    shutil.copytree(clips, tmp_path / "more")
    shutil.copy(clips / "00001.wav", tmp_path / "more" / "zz.wav")
    summary = emi.extract(tmp_path / "more", made)
    assert (summary.written, summary.present) == (1, 10)
    after = read_cache(made)
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"zz"}


def test_planning_writes_nothing_and_counts_what_is_missing(tmp_path, clips, made, no_loading):
    before = files(tmp_path)
    plan = extract.plan.plan(clips, tmp_path / "new.zarr", ExtractSettings())
    assert (len(plan.sources), plan.todo, plan.header.dim) == (10, 10, 384)
    assert extract.plan.plan(clips, made, ExtractSettings()).todo == 0
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_seconds": 6}, "max_seconds (stored 12.0, wanted 6.0)"),
        ({"dtype": "float32"}, "dtype (stored float16, wanted float32)"),
        ({"backbone": "tiny"}, "weights_sha256 (stored "),
    ],
)
def test_features_with_another_fingerprint_are_refused_with_the_field_and_not_changed(
    made, clips, tiny, tmp_path, settings, named
):
    if "backbone" in settings:
        tiny.save_audeering(tmp_path / "tiny")
        settings = {"backbone": str(tmp_path / "tiny")}
    before = files(made)
    with pytest.raises(StaleCacheError) as caught:
        emi.extract(clips, made, **settings)
    assert named in str(caught.value)
    assert str(made) in str(caught.value)
    assert files(made) == before


def test_a_moved_checkpoint_is_the_same_backbone(tmp_path, clips, tiny):
    tiny.save_audeering(tmp_path / "here")
    emi.extract(clips, tmp_path / "f.zarr", backbone=str(tmp_path / "here"), max_seconds=0.1)
    (tmp_path / "here").rename(tmp_path / "there")
    assert emi.extract(clips, tmp_path / "f.zarr", backbone=str(tmp_path / "there"), max_seconds=0.1).present == 10


def test_the_fingerprint_names_everything_that_changes_a_number(made):
    with open_cache(made) as store:
        assert set(store.fingerprint) == {
            *("backbone", "weights_sha256", "config_sha256", "layer", "normalisation"),
            *("sample_rate", "max_seconds", "resampler", "decoder", "precision", "dtype"),
        }
        assert {"torch", "av", "emi", "python"} <= set(store.header.provenance)


def test_three_shards_make_the_whole_cache(tmp_path, clips, read_cache, monkeypatch):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 2)
    emi.extract(clips, tmp_path / "whole.zarr", dtype="float32")
    written = [emi.extract(clips, tmp_path / "parts.zarr", dtype="float32", shard=f"{i}/3").written for i in (2, 1, 3)]
    assert sum(written) == 10
    assert min(written) > 0
    assert read_cache(tmp_path / "parts.zarr") == read_cache(tmp_path / "whole.zarr")


def test_progress_counts_every_clip_once(tmp_path, clips):
    seen = []
    run.extract(clips, tmp_path / "f.zarr", on_progress=lambda *state: seen.append(state))
    assert [done for done, _, _ in seen] == list(range(1, 11))
    assert {total for _, total, _ in seen} == {10}
    assert sum(seconds for _, _, seconds in seen) == pytest.approx(6.45)


@pytest.mark.parametrize("container", ["f.zarr", "f.h5"])
def test_an_interrupted_run_keeps_finished_clips_and_resumes(tmp_path, clips, read_cache, container):
    emi.extract(clips, tmp_path / f"whole_{container}", dtype="float32")

    def interrupt(done, total, seconds):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.extract(clips, tmp_path / container, ExtractSettings(dtype="float32"), on_progress=interrupt)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("decode", "backbone"))]
    with open_cache(tmp_path / container) as store:
        assert len(store) == 4
    summary = emi.extract(clips, tmp_path / container, dtype="float32")
    assert (summary.written, summary.present) == (6, 4)
    assert read_cache(tmp_path / container) == read_cache(tmp_path / f"whole_{container}")


def test_when_the_backbone_fails_midway_finished_clips_are_kept(tmp_path, clips, monkeypatch, load):
    backbone, calls = load("silero")[0], []

    def fails(waveforms):
        calls.append(len(waveforms))
        if len(calls) == 4:
            raise RuntimeError("broken")
        return backbone(waveforms)

    fails.pads = False
    monkeypatch.setattr(SileroFamily, "load", lambda *_: fails)
    with pytest.raises(RuntimeError, match="broken"):
        emi.extract(clips, tmp_path / "f.zarr", batch_seconds=1e-3)
    with open_cache(tmp_path / "f.zarr") as store:
        assert 0 < len(store) < 10


def test_invalid_input_is_refused_before_anything_is_written(tmp_path, clips):
    (tmp_path / "empty").mkdir()
    for error, arguments in (
        (MediaListError, (tmp_path / "empty", tmp_path / "f.zarr")),
        (CacheFormatError, (clips, tmp_path / "f.tar")),
        (BackboneError, (clips, tmp_path / "f.zarr", {"backbone": "./nowhere"})),
        (ExtractSettingsError, (clips, tmp_path / "f.zarr", {"precision": "bf16"})),
    ):
        with pytest.raises(error):
            emi.extract(*arguments[:2], **(arguments[2] if len(arguments) > 2 else {}))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_clips_that_another_process_wrote_meanwhile_count_as_present(tmp_path, clips):
    def other(_):
        emi.extract(clips, tmp_path / "f.h5")

    summary = run.extract(clips, tmp_path / "f.h5", on_plan=other)
    assert (summary.written, summary.present) == (0, 10)


def test_ids_that_an_older_cache_holds_in_another_unicode_form_are_not_extracted_again(tmp_path, clips, monkeypatch):
    (tmp_path / "m").mkdir()
    shutil.copy(next(clips.rglob("*.wav")), tmp_path / "m/jose\u0301.wav")
    with monkeypatch.context() as patch:
        patch.setattr("extract.sources.stored_form", lambda name: name)
        emi.extract(tmp_path / "m", tmp_path / "f.zarr")
    assert open_cache(tmp_path / "f.zarr").ids == ["jose\u0301"]
    assert emi.extract(tmp_path / "m", tmp_path / "f.zarr").present == 1
