"""The Python façade: extract, open_cache, train_head, load, predict."""

from pathlib import Path

import numpy as np
import pytest

import emi
from cache import StaleCacheError
from emi.prediction import UnreadableMediaError
from train_head.errors import RunFolderError
from train_head.labels import read_labels


@pytest.fixture(scope="module")
def run(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    emi.train_head(labelled_cache, labelled / "train.csv", labelled / "valid.csv", folder, epochs=2, hidden=16, lr=3e-3)
    return folder


def test_predictions_from_media_equal_those_from_the_cache(run, labelled):
    records = emi.load(run).predict(labelled / "audio")
    assert [list(record) for record in records] == [["Filename", "Joy", "Calm"]] * 40
    expected = read_labels(run / "predictions_valid.csv", check_range=False)
    values = {record["Filename"]: [record["Joy"], record["Calm"]] for record in records}
    np.testing.assert_allclose([values[clip] for clip in expected.ids], expected.values, atol=1e-5)


def test_one_file_gives_one_record_and_the_same_numbers(run, labelled):
    model = emi.load(run)
    alone = model.predict([labelled / "audio" / "00030.wav"])
    among = {record["Filename"]: record for record in model.predict(labelled / "audio")}
    assert len(alone) == 1
    assert alone[0]["Joy"] == pytest.approx(among["00030"]["Joy"], abs=1e-5)


def test_unreadable_media_raise_with_the_first_name(run, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"")
    with pytest.raises(UnreadableMediaError, match=r"1 of 1 files .*x\.wav, is empty"):
        emi.load(run).predict(tmp_path / "x.wav")


def test_a_run_made_with_other_weights_is_refused(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text()
    digest = next(line for line in text.splitlines() if line.startswith("weights_sha256"))
    config.write_text(text.replace(digest, f'weights_sha256 = "{"0" * 64}"'))
    with pytest.raises(StaleCacheError, match="weights_sha256"):
        emi.load(tmp_path / "run")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        emi.load(tmp_path)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trainhead'"):
        _ = emi.trainhead
