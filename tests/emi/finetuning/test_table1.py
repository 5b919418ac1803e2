"""The paper's table: every row, resumed row by row."""

import csv
import shutil
from dataclasses import replace

import pytest

import emi
from emi.finetuning import table1
from emi.finetuning.table1 import ROWS, _whole_by_older_decoder
from extract.settings import ExtractSettings
from train_head.errors import LabelError
from train_head.runs.inputs import LabelFiles
from train_head.training.loop import Reporter

SETTINGS = {"hidden": 8, "epochs": 1, "lr": 3e-3, "batch_size": 8, "seeds": 2, "device": "cpu", "backbone_lr": 1e-3}


def test_every_row_is_run_once_and_the_papers_numbers_stand_beside(labelled, checkpoint, tmp_path, monkeypatch):
    out, begun = tmp_path / "table", []
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", out)
    settings = SETTINGS | {"backbone": str(checkpoint), "test": labelled / "valid.csv"}

    class Stop(Reporter):
        def row_started(self, name: str) -> None:
            begun.append(name)
            if name == "+ dropout":
                raise KeyboardInterrupt

    class Epochs(Reporter):
        def epoch_finished(self, record) -> None:
            trained.append(record)

    with pytest.raises(KeyboardInterrupt):
        emi.table1(*files, **settings, reporter=Stop())
    assert not (out / "table1.csv").exists()
    trained = []
    found = emi.table1(*files, **settings, reporter=Epochs())
    assert begun == [row.name for row in ROWS]
    assert len(trained) == 4  # two seeds, each alone and on all clips: the last row only
    with (out / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["frozen, LSTM", "+ global vector", "+ unfrozen", "+ dropout"]
    assert [row["paper_valid"] for row in rows] == ["0.262", "0.28", "0.386", "0.389"]
    assert [row["test_on_all"] != "" for row in rows] == [False, False, True, True]
    assert float(rows[0]["test"]) == pytest.approx(float(rows[0]["ensemble"]))  # the test file is the validation file
    assert (out / "table1.svg").stat().st_size > 5000
    assert found.markdown() == (out / "table1.md").read_text()
    assert all(row["row"] in found.table() for row in rows)
    assert emi.table1(*files, **settings).nothing_to_do


def test_frozen_rows_are_extracted_in_the_precision_of_the_others(labelled, checkpoint, tmp_path, monkeypatch):
    asked = []

    def extract(media, cache, how, **_):
        asked.append(how.precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(table1, "extract", extract)
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", tmp_path / "table")
    with pytest.raises(KeyboardInterrupt):
        emi.table1(*files, backbone=str(checkpoint), precision="bf16", **SETTINGS)
    assert asked == ["bf16"]


def test_clips_of_both_splits_are_met_before_anything_is_extracted(labelled, checkpoint, tmp_path):
    train, out = labelled / "train.csv", tmp_path / "table"
    with pytest.raises(LabelError, match="twice; keep each in one"):
        emi.table1(labelled / "audio", train, train, out, backbone=str(checkpoint), test=train, **SETTINGS)
    assert not out.exists()


def test_a_whole_cache_of_an_older_decoder_stays_and_one_that_lacks_clips_does_not(labelled, labelled_cache, tmp_path):
    cache = tmp_path / "features.zarr"
    shutil.copytree(labelled_cache, cache)
    how = ExtractSettings(backbone="silero", dtype="float16")
    labels = LabelFiles.named(labelled / "train.csv", labelled / "valid.csv").read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("extract.audio.modality.DECODER", 3)
        assert _whole_by_older_decoder(cache, how, labels)
        assert not _whole_by_older_decoder(cache, replace(how, max_seconds=5.0), labels)
        more = replace(labels["valid"], filenames=("77", *labels["valid"].filenames[1:]))
        assert not _whole_by_older_decoder(cache, how, labels | {"valid": more})
