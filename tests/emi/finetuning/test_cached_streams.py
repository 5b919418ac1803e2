"""A backbone that learns beside cached streams: joined by id, recorded, computed from media again."""

import os
import shutil
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache.errors import EmiError
from cache.exchange.importing import import_features
from emi.cli import app
from emi.finetuning import cached
from emi.media_features import ForeignFeaturesError
from train_head.data.labels import read_labels
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.heads import FUSIONS

BESIDE = {"fusion.hidden": 8, "fusion.dropout": 0.0, "slow.head": "mean", "backbone_lr": 1e-3}
SILERO = {"freeze": "none", **BESIDE}
EXACT = {"hidden": 8, "dropout": 0.0, "batch_size": 8, "precision": "fp32", "device": "cpu"}
LACKING = {"00003", "00017", "00030", "00036"}
"""Clips that the cache `slow` lacks."""


@pytest.fixture(scope="module")
def run(tune, slow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ft"
    tune(folder, "silero", cache={"slow": slow}, **SILERO)
    return folder


def values(folder, split="valid"):
    return read_labels(folder / f"predictions_{split}.csv", check_range=False)


def by_clip(records):
    return {record["Filename"]: [record["Joy"], record["Calm"]] for record in records}


def write_features(folder, clips, dim=3):
    """Features that emi did not extract: a file per clip."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for clip in clips:
        np.save(folder / f"{clip}.npy", rng.normal(size=(4, dim)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def features(labelled, tmp_path_factory):
    """A cache of silero in float32, as the end-to-end mode computes."""
    path = tmp_path_factory.mktemp("cached") / "features.zarr"
    emi.extract(labelled / "audio", path, dtype="float32", precision="fp32")
    return path


STILL = {"head": "gru", "epochs": 1, "lr": 1e-12, "weight_decay": 0.0}


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_every_fusion_gives_what_it_gives_in_the_cached_mode(tune, features, slow, labelled, tmp_path, fusion):
    """Before the first step, in training too: fusions may join rows by the times that these have."""
    fused = {"name": fusion} | ({} if fusion == "late" else {"dropout": 0.0})
    ours = tune(tmp_path / "ft", "silero", cache={"slow": slow}, freeze="backbone", fusion=fused, **STILL)
    files = (labelled / "train.csv", labelled / "valid.csv", tmp_path / "head")
    theirs = emi.train_head({"audio": features, "slow": slow}, *files, fusion=fused, **EXACT | STILL)
    np.testing.assert_allclose(values(tmp_path / "ft").values, values(tmp_path / "head").values, rtol=0, atol=1e-5)
    assert ours.history[0]["train_loss"] == pytest.approx(theirs.history[0]["train_loss"], abs=1e-5)


def test_streams_are_left_out_at_random_in_training_only(tune, slow, tmp_path):
    how = {"cache": {"slow": slow}, "freeze": "backbone", **STILL}
    all_of_them, some = (tune(tmp_path / str(p), "silero", modality_dropout=p, **how) for p in (0.0, 0.5))
    assert abs(all_of_them.history[0]["train_loss"] - some.history[0]["train_loss"]) > 1e-4
    np.testing.assert_array_equal(values(tmp_path / "0.0").values, values(tmp_path / "0.5").values)


def test_auxiliary_losses_are_those_of_the_cached_mode_in_pieces_too(tune, features, slow, labelled, tmp_path):
    """Clips that lack a stream do not count in its loss."""
    how = STILL | {"auxiliary": 0.5, "fusion.dropout": 0.0}
    files = (labelled / "train.csv", labelled / "valid.csv", tmp_path / "head")
    theirs = emi.train_head({"audio": features, "slow": slow}, *files, **EXACT | how).history[0]["train_loss"]
    for seconds in (0.0, 2.0):
        folder = tmp_path / f"ft-{seconds:g}"
        ours = tune(folder, "silero", cache={"slow": slow}, freeze="backbone", batch_seconds=seconds, **how)
        assert ours.history[0]["train_loss"] == pytest.approx(theirs, abs=1e-5)
        np.testing.assert_allclose(values(folder).values, values(tmp_path / "head").values, rtol=0, atol=1e-5)


def test_a_required_stream_is_asked_of_every_clip(tune, slow, tmp_path):
    how = {"cache": {"slow": slow}, "freeze": "backbone", **STILL}
    with pytest.raises(LabelError, match=r"2 of the 28 clips .* the required stream 'slow' \(first: 3, 17\)"):
        tune(tmp_path / "ft", "silero", require=["slow"], **how)
    assert not (tmp_path / "ft").exists()
    tune(tmp_path / "ft", "silero", require=["slow", "audio"], skip_missing=True, **how)
    assert values(tmp_path / "ft").ids == tuple(f"{i:05d}" for i in range(28, 40) if f"{i:05d}" not in LACKING)
    assert tomllib.loads((tmp_path / "ft" / "config.toml").read_text())["data"]["require"] == ["audio", "slow"]
    assert not (tmp_path / "ft" / "missing_streams.csv").exists()
    with pytest.raises(TrainSettingsError, match="unknown stream to require 'slwo'; did you mean 'slow'"):
        tune(tmp_path / "other", "silero", require=["slwo"], **how)


def test_frames_are_not_dropped_where_streams_meet_at_times(tune, slow, tmp_path):
    with pytest.raises(TrainSettingsError, match="frame_dropout moves rows away from their times"):
        tune(tmp_path / "ft", "silero", cache={"slow": slow}, head="gru", fusion="transformer", frame_dropout=0.1)


def test_the_run_records_every_stream(run, slow):
    config = tomllib.loads((run / "config.toml").read_text())
    learned = tomllib.loads((run / "features.toml").read_text())
    assert config["features"].keys() == {"slow"}
    assert config["features"]["slow"]["fingerprint"] == emi.open_cache(slow).fingerprint
    assert config["data"]["caches"] == {"slow": [str(slow)]}
    assert config["streams"].keys() == {"audio", "slow"}
    assert (learned.keys(), learned["audio"]["source"]) == ({"audio"}, ".")
    assert (run / "transform-slow.safetensors").is_file()
    card = (run / "README.md").read_text()
    assert "for the stream `audio`" in card
    assert "The backbone was fine-tuned with the head" in card
    assert "These are derived by `emi cache derive`" in card


def test_prediction_computes_every_stream_from_media(run, labelled, tmp_path):
    """A moved run too; of clips that the cache lacked, media give what it would have held."""
    shutil.copytree(run, tmp_path / "moved")
    expected = values(run)
    found = by_clip(emi.load(tmp_path / "moved").predict(labelled / "audio"))
    for clip, row in zip(expected.ids, expected.values, strict=True):
        assert np.allclose(found[clip], row, rtol=0, atol=1e-4) == (clip not in LACKING)


def test_it_predicts_together_with_a_head_on_caches(run, labelled, labelled_cache, slow, tmp_path):
    files = (labelled / "train.csv", labelled / "valid.csv")
    emi.train_head({"audio": labelled_cache, "slow": slow}, *files, tmp_path / "head", epochs=1, hidden=8)
    emi.ensemble([run, tmp_path / "head"], tmp_path / "both")
    parts = [by_clip(emi.load(folder).predict(labelled / "audio")) for folder in (run, tmp_path / "head")]
    for clip, both in by_clip(emi.load(tmp_path / "both").predict(labelled / "audio")).items():
        np.testing.assert_allclose(both, np.mean([part[clip] for part in parts], axis=0), atol=1e-6)


def test_a_finished_run_is_a_backbone_and_finds_nothing_to_do(run, tune, slow, labelled, tmp_path):
    assert tune(run, "silero", cache={"slow": slow}, **SILERO).resumed_at == 2
    emi.extract(labelled / "audio", tmp_path / "tuned.zarr", backbone=str(run))
    assert emi.open_cache(tmp_path / "tuned.zarr").header.dim == 384


def test_pieces_and_processes_change_nothing(tune, slow, audio, tmp_path, monkeypatch, warm_children):
    """Several processes map one copy of the cached rows, of which nothing is left."""
    folders = []
    monkeypatch.setattr(cached, "gather_streams", lambda *args: folders.append(args[2]) or GATHER(*args))
    ways = {"whole": {}, "pieces": {"batch_seconds": 2.0}, "two": {"processes": 2}}
    for name, settings in (ways | {"sharded": {"processes": 2, "fsdp": True}}).items():
        how = {"loss": "0.5*ccc + 0.5*mse", "slow.standardise": True, "backbone_dropout": 0.0}
        tune(tmp_path / name, cache={"slow": slow}, **BESIDE | how | settings)
    for name in ("pieces", "two", "sharded"):
        np.testing.assert_allclose(values(tmp_path / name).values, values(tmp_path / "whole").values, rtol=0, atol=1e-4)
    assert folders[:2] == [None, None]
    assert os.path.dirname(folders[2]) == str(audio)
    assert not os.path.exists(folders[2])


GATHER = cached.gather_streams


def test_folds_and_training_on_all_keep_the_streams(tune, slow, labelled, tmp_path):
    how = {"cache": {"slow": slow}, "epochs": 1, **SILERO}
    assert tune(tmp_path / "folds", "silero", folds=2, **how).kind == "folds"
    tune(tmp_path / "all", "silero", train_on_all=True, test=labelled / "valid.csv", **how)
    expected = values(tmp_path / "all" / "all", "test")
    found = by_clip(emi.load(tmp_path / "all" / "all").predict(labelled / "audio"))
    for clip, row in zip(expected.ids, expected.values, strict=True):
        assert np.allclose(found[clip], row, rtol=0, atol=1e-4) == (clip not in LACKING)


def test_a_clip_without_media_is_left_out_though_a_cache_holds_it(labelled, slow, tmp_path):
    shutil.copytree(labelled / "audio", tmp_path / "media")
    (tmp_path / "media" / "00004.wav").unlink()
    files = (tmp_path / "media", labelled / "train.csv", labelled / "valid.csv", tmp_path / "ft")
    how = {"backbone": "silero", "cache": {"slow": slow}, "epochs": 1, "hidden": 8}
    with pytest.raises(LabelError, match=r"1 of the 28 clips of .*train\.csv are not in .*media \(first: 4\)"):
        emi.finetune(*files, **how)
    assert emi.finetune(*files, **how, skip_missing=True).skipped == 1


def test_imported_features_train_and_are_not_computed_from_media(tune, tmp_path):
    words = write_features(tmp_path / "words", [f"{i:05d}" for i in range(40)])
    import_features(words, tmp_path / "words.zarr", hop_seconds=0.1)
    result = tune(tmp_path / "ft", "silero", cache={"words": tmp_path / "words.zarr"}, epochs=1)
    assert result.report.clips == 12
    with pytest.raises(ForeignFeaturesError, match=r"features that emi did not extract and cannot make from media"):
        emi.load(tmp_path / "ft")


def test_names_that_cannot_be(tune, slow, labelled, tmp_path):
    for cache, said in (
        ({"audio": slow}, r"--cache audio=.*: the backbone that learns gives the stream 'audio' from the media"),
        (slow, r"the cache .*slow\.zarr has no name; .*--cache NAME=PATH"),
        ({"lstm": slow}, "'lstm' cannot name a stream"),
    ):
        with pytest.raises(TrainSettingsError, match=said):
            tune(tmp_path / "ft", "silero", cache=cache)
    with pytest.raises(TrainSettingsError, match="stream in the settings 'text'"):
        tune(tmp_path / "ft", "silero", cache={"slow": slow}, **{"text.hidden": 3})
    files = zip(("--media", "--train", "--valid"), ("audio", "train.csv", "valid.csv"), strict=True)
    typed = [str(part) for option, name in files for part in (option, labelled / name)]
    place = ["--out", str(tmp_path / "ft"), "--backbone", "silero", "--cache", f"audio={slow}"]
    done = CliRunner().invoke(app, ["finetune", *typed, *place])
    assert "gives the stream 'audio' from the media" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_cache_of_other_clips(tune, tmp_path):
    write_features(tmp_path / "in", ["x", "y"])
    import_features(tmp_path / "in", tmp_path / "other.zarr", hop_seconds=0.1)
    with pytest.raises(LabelError, match=r"the stream 'words' .*ids look like 'x'\) has none of the 28 clips"):
        tune(tmp_path / "ft", "silero", cache={"words": tmp_path / "other.zarr"})


def test_other_streams_are_another_run(run, tune, slow, tmp_path):
    with pytest.raises(RunFolderError, match=r"holds another run: .*--cache: streams \(there 'slow', now none\)\."):
        tune(run, "silero", **{key: value for key, value in SILERO.items() if "." not in key})
    with pytest.raises(RunFolderError, match=r"holds another run: --cache \(slow=.*its features are others"):
        tune(run, "silero", cache={"slow": slow.parent / "silero.zarr"}, **SILERO)


def test_a_head_of_other_streams_or_of_other_features_of_one(tune, slow, labelled, labelled_cache, tmp_path):
    files = (labelled / "train.csv", labelled / "valid.csv")
    emi.train_head({"audio": labelled_cache, "slow": labelled_cache}, *files, tmp_path / "two", epochs=1, hidden=8)
    emi.train_head(labelled_cache, *files, tmp_path / "one", epochs=1, hidden=8)
    for head, cache, said in (
        ("two", {"slow": slow}, r"trained on other features of the stream 'slow' than --cache slow=… holds: "),
        ("two", None, r"reads audio, slow; start from a head on one stream, or give the"),
        ("one", {"slow": slow}, r"reads features; start from a head on audio, slow"),
    ):
        with pytest.raises(EmiError, match=said):
            tune(tmp_path / "ft", "silero", cache=cache, init_head=tmp_path / head)
