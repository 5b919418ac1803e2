"""Caches and run folders that commit 12941d2 made still work; `make_data.py` made them."""

import csv
import json
import runpy
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import emi
from cache import StaleCacheError
from cache.derive.derived import derive
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify
from train_head.errors import RunFolderError

HERE = Path(__file__).parent
MADE = runpy.run_path(str(HERE / "make_data.py"))
CLIPS, CACHES, RUNS, digests, labels = (MADE[name] for name in ("CLIPS", "CACHES", "RUNS", "digests", "labels"))
EXPECTED = json.loads((HERE / "data" / "expected.json").read_text())
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """The clips that the data were made of."""
    return MADE["write_media"](tmp_path_factory.mktemp("media") / "clips")


@pytest.fixture
def data(tmp_path):
    """A copy of the data, elsewhere than where they were made."""
    return Path(shutil.copytree(HERE / "data", tmp_path / "data"))


def train(data, run, like=None, **changes):
    """Give the call that the run was made with, with the labels and caches where they are now."""
    cache, arguments = RUNS[like or run]
    files, arguments = labels(data), arguments | changes
    return emi.train_head(data / cache, files["train"], files["valid"], data / run, test=files["test"], **arguments)


def predictions(folder):
    with (folder / "predictions_test.csv").open() as file:
        return {row["Filename"]: [float(row["Joy"]), float(row["Calm"])] for row in csv.DictReader(file)}


def must_equal(found, expected):
    assert sorted(found) == sorted(expected) == CLIPS
    np.testing.assert_allclose([found[clip] for clip in CLIPS], [expected[clip] for clip in CLIPS], atol=TOLERANCE)


def test_the_recorded_predictions_tell_the_clips_apart():
    for runs in (EXPECTED["media"], EXPECTED["cache"]):
        for recorded in runs.values():
            assert np.ptp([recorded[clip] for clip in CLIPS], axis=0).min() > 100 * TOLERANCE


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_opens_with_the_bytes_it_was_given(data, name):
    assert digests(data / name) == EXPECTED["frames"][name]
    assert verify(data / name).sound
    with emi.open_cache(data / name) as store:
        assert store.fingerprint["backbone"] == "silero"
        assert "decoder" not in store.fingerprint
        assert all(1.0 <= store[clip].seconds < 1.3 for clip in store.ids)


def test_a_commit_that_was_cut_off_is_completed_from_its_journal(data):
    assert sorted(digests(data / "cut_off.h5")) == CLIPS[:4]
    (data / "cut_off.h5.journal").unlink()
    assert sorted(digests(data / "cut_off.h5")) == CLIPS[:2]


@pytest.mark.parametrize("target", ["copy.zarr", "copy.h5"])
@pytest.mark.parametrize("name", ["half.zarr", "half.h5", "cut_off.h5"])
def test_a_cache_is_converted_byte_for_byte(data, name, target):
    transfer([data / name], data / target)
    assert digests(data / target) == EXPECTED["frames"][name]
    assert verify(data / target).sound


@pytest.mark.parametrize("name", ["half.zarr", "half.h5", "cut_off.h5"])
def test_filling_a_cache_from_media_is_refused_because_media_are_read_otherwise_since(data, media, name):
    with pytest.raises(StaleCacheError, match=r"decoder \(stored 1, wanted \d+\).*into a new --cache path"):
        emi.extract(media, data / name, device="cpu")
    assert digests(data / name) == EXPECTED["frames"][name]


def test_extracting_anew_gives_the_features_that_were_stored(data, media, tmp_path):
    """PCM files are read as they were then; features may differ in the last digit on another processor."""
    emi.extract(media, tmp_path / "new.zarr", device="cpu")
    with emi.open_cache(tmp_path / "new.zarr") as new, emi.open_cache(data / "all.zarr") as old:
        for clip in CLIPS:
            np.testing.assert_allclose(new[clip].frames, old[clip].frames, atol=2e-3, rtol=2e-3)


def test_a_derived_cache_is_filled_with_the_transform_it_holds(data):
    summary = derive(data / "all.zarr", data / "half_derived.zarr", **MADE["RECIPE"])
    assert (summary.written, summary.present, summary.fitted) == (4, 4, False)
    with emi.open_cache(data / "half_derived.zarr") as filled, emi.open_cache(data / "derived.zarr") as whole:
        for clip in CLIPS:
            np.testing.assert_allclose(filled[clip].frames, whole[clip].frames, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("run", [*RUNS, "finetuned"])
def test_a_run_predicts_from_media_what_it_did_and_says_that_media_are_read_otherwise_since(data, media, run):
    for cache in CACHES:  # what was trained on need not be there
        (shutil.rmtree if (data / cache).is_dir() else Path.unlink)(data / cache)
    model = emi.load(data / run, device="cpu")
    assert len(model.notes) == 1
    assert "sound from version 1 of emi's decoder" in model.notes[0]
    found = {record["Filename"]: [record["Joy"], record["Calm"]] for record in model.predict(media)}
    must_equal(found, EXPECTED["media"][run])


@pytest.mark.parametrize("run", RUNS)
def test_a_finished_run_has_nothing_to_do_and_predicts_from_its_cache_what_it_did(data, run):
    must_equal(predictions(data / run), EXPECTED["cache"][run])
    kept = [path for name in ("best.safetensors", "metrics.jsonl") for path in (data / run).rglob(name)]
    before = [path.read_bytes() for path in kept]
    for path in (data / run).rglob("predictions_*.csv"):
        path.unlink()
    train(data, run)
    must_equal(predictions(data / run), EXPECTED["cache"][run])
    assert [path.read_bytes() for path in kept] == before


def test_an_unfinished_run_resumes_and_ends_as_the_one_that_was_not_interrupted(data):
    result = train(data, "unfinished", like="finished")
    assert (result.resumed_at, len(result.history)) == (1, 3)
    must_equal(predictions(data / "unfinished"), EXPECTED["cache"]["finished"])
    lines = [(data / run / "metrics.jsonl").read_text().splitlines() for run in ("unfinished", "finished")]
    losses = [[json.loads(line)["train_loss"] for line in run] for run in lines]
    np.testing.assert_allclose(*losses, atol=TOLERANCE)


def test_a_run_resumes_where_its_settings_lack_keys_that_have_their_defaults(data):
    path = data / "unfinished" / "config.toml"
    config = tomllib.loads(path.read_text())
    assert not config.keys() & {"versions", "licence"}  # which a run of today records
    for key in ("weighting", "ema", "stop_after", "augment"):
        del config[key]
    del config["lstm"]["dropout"]
    path.write_text(tomli_w.dumps(config))
    assert train(data, "unfinished", like="finished").resumed_at == 1
    must_equal(predictions(data / "unfinished"), EXPECTED["cache"]["finished"])


def test_a_changed_setting_of_an_unfinished_run_is_named(data):
    with pytest.raises(RunFolderError, match=r"--hidden \(there 8, now 4\)"):
        train(data, "unfinished", like="finished", hidden=4)
