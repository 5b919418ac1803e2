"""A head on derived features predicts from media, because its run folder carries what derived them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import emi
from cache import CacheWriter, Clip, Header, StaleCacheError, open_cache
from cache.derive.derived import derive
from emi.cli.cache import derive as cache_derive
from emi.console import Progress
from train_head.data.gather import open_caches
from train_head.data.labels import read_labels
from train_head.data.names import UNNAMED
from train_head.errors import RunFolderError
from train_head.runs.inputs import TRANSFORM, stored_transform

RECIPES = {
    "all": {"pool": 3, "pca": 24, "standardise": True},
    "unit variance": {"standardise": True, "dtype": "float32"},
    "pooled": {"pool": 5},
}


@pytest.fixture(scope="module", params=RECIPES)
def run(request, labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a derived cache that is gone afterwards."""
    folder = tmp_path_factory.mktemp("derived")
    ids = read_labels(labelled / "train.csv").ids
    derive(labelled_cache, folder / "small.h5", **RECIPES[request.param], train_ids=ids)
    for _ in range(2):  # the second finds nothing to do
        result = train(labelled, folder / "small.h5", folder / "run")
    assert result.resumed_at == 2
    (folder / "small.h5").unlink()
    return folder / "run"


def train(labelled, cache, out):
    return emi.train_head(cache, labelled / "train.csv", labelled / "valid.csv", out, epochs=2, hidden=16, lr=3e-3)


def test_predictions_from_media_equal_those_from_the_derived_cache(run, labelled):
    records = emi.load(run).predict(labelled / "audio")
    expected = read_labels(run / "predictions_valid.csv", check_range=False)
    values = {record["Filename"]: [record["Joy"], record["Calm"]] for record in records}
    assert np.ptp(expected.values, axis=0).min() > 0.003  # or equality would mean little
    np.testing.assert_allclose([values[clip] for clip in expected.ids], expected.values, atol=1e-3)


def test_the_card_names_the_recipe(run):
    text = (run / "README.md").read_text()
    words = {3: "means of 3 frames, 24 principal components, unit variance (fitted on 28 clips)"}
    words |= {1: "unit variance (fitted on 28 clips)", 5: "means of 5 frames"}
    pool = emi.load(run).trained.only.header.fingerprint["derived"]["pool"]
    assert f"\nThese are derived by `emi cache derive`: {words[pool]}.\n" in text


def test_a_transform_that_is_gone_or_changed_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    if not (copy / TRANSFORM).exists():
        assert emi.load(copy).trained.only.features["fingerprint"]["derived"]["pool"] == 5  # which needs no numbers
        return
    content = bytearray((copy / TRANSFORM).read_bytes())
    content[-1] ^= 1
    (copy / TRANSFORM).write_bytes(content)
    with pytest.raises(RunFolderError, match=f"{TRANSFORM} is damaged"):
        emi.load(copy)
    (copy / TRANSFORM).unlink()
    with pytest.raises(RunFolderError, match=f"{TRANSFORM} is missing"):
        emi.load(copy)


def test_the_transform_is_taken_from_clips_as_the_cache_stores_them(run, labelled, labelled_cache):
    """What the source's storage dtype rounds away is rounded away from media, too."""
    model = emi.load(run)
    assert model._streams[UNNAMED]._settings.dtype == "float16"
    clip = open_cache(labelled_cache)["00030"]
    trained, stream = model.trained, model.trained.only
    expected = trained.predict({UNNAMED: stream.header.stored(stream.transform.apply(clip))})
    record = model.predict([labelled / "audio" / "00030.wav"])[0]
    np.testing.assert_allclose([record["Joy"], record["Calm"]], expected, atol=1e-4)


def test_a_run_goes_on_with_its_own_features_only(labelled, labelled_cache, tmp_path):
    for pool in (2, 3):
        derive(labelled_cache, tmp_path / f"{pool}.h5", pool=pool)
    train(labelled, tmp_path / "2.h5", tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"--cache \(.*derived\.pool \(stored 2, wanted 3\)"):
        train(labelled, tmp_path / "3.h5", tmp_path / "run")


def test_caches_whose_transforms_differ_in_a_bit_are_not_trained_on_together(tmp_path):
    recipe = {"from": "0" * 64, "from_dtype": "float16", "pool": 1, "standardise": True}
    header = Header(fingerprint={"dtype": "float16", "derived": recipe}, dim=2)
    for name, mean in (("a", 1.0), ("b", np.nextafter(1.0, 2.0)), ("c", 1.0)):
        extras = {"mean": np.array([mean, 0.0]), "scale": np.ones(2)}
        with CacheWriter(tmp_path / f"{name}.h5", header, extras) as writer:
            writer.add(Clip(name, np.zeros((1, 2), np.float16), None, None, 0.1))
    paths = {name: tmp_path / f"{name}.h5" for name in "abc"}
    assert stored_transform(open_caches([paths["a"], paths["c"]])) is not None
    with pytest.raises(StaleCacheError, match=r"a\.h5 and .*b\.h5 were derived with transforms"):
        stored_transform(open_caches([paths["a"], paths["b"]]))


def test_the_command_derives_shows_the_recipe_and_finds_nothing_to_do(labelled, labelled_cache, tmp_path, monkeypatch):
    shown = set()
    monkeypatch.setattr(Progress, "__call__", lambda bar, *now: shown.add((bar._verb, now[1])))
    app = typer.Typer()
    app.command()(cache_derive.derive)
    options = "--pool 5 --pca 16 --standardise --dtype float32 --skip-missing".split()
    (tmp_path / "train.csv").write_text((labelled / "train.csv").read_text() + "777,100,-3\n")
    command = [os.fspath(labelled_cache), os.fspath(tmp_path / "s.zarr"), *options]
    first = CliRunner().invoke(app, [*command, "--train", os.fspath(tmp_path / "train.csv")], catch_exceptions=False)
    assert first.exit_code == 0
    assert shown == {("fitting", 28), ("deriving", 40)}
    assert "1 training clips were left out" in first.stderr
    assert "wrote 40 clips to " in first.stdout
    assert "means of 5 frames, 16 principal components, unit variance (fitted on 28 clips)" in first.stdout
    assert "16 features every 160 ms, stored as float32" in first.stdout
    again = CliRunner().invoke(app, [*command, "--train", os.fspath(tmp_path / "train.csv")], catch_exceptions=False)
    assert "nothing to do: all 40 clips" in again.stdout
