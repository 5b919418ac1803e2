"""The paper's table: every row that can be made, resumed row by row; the others left out with a reason."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache import CacheWriter, Clip, Header
from cache.exchange.importing import import_features
from emi.cli import app
from emi.paper_table import features
from emi.paper_table.features import TableData, whole_by_older_decoder
from emi.paper_table.rows import ROWS, describe_head, row_settings
from extract.settings import ExtractSettings
from tests.emi.test_prediction_from_faces import write
from train_head.errors import LabelError, TrainSettingsError
from train_head.runs.inputs import LabelFiles
from train_head.training.loop import Reporter

SETTINGS = {"hidden": 8, "epochs": 1, "lr": 3e-3, "batch_size": 8, "seeds": 1, "device": "cpu", "backbone_lr": 1e-3}
NAMES = [row.name for row in ROWS]
OF_AUDIO = ["baseline: audio", "audio, frozen", "+ global vector", "+ unfrozen", "+ dropout"]


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """wav2vec 2.0 of audEERING's shape, 12 layers of 32 numbers, with its regression head."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    tiny.save_audeering(folder)
    return folder


@pytest.fixture(scope="module")
def faces(labelled, tmp_path_factory):
    """A cache of features that another program computed of faces; two clips have none."""
    folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(3)
    (folder / "vit").mkdir()
    for path in sorted((labelled / "audio").iterdir())[:-2]:
        np.save(folder / "vit" / f"{path.stem}.npy", rng.normal(size=(6, 5)).astype(np.float32))
    import_features(folder / "vit", folder / "vit.zarr", hop_seconds=1 / 6, modality="face")
    return folder / "vit.zarr"


class Notes(Reporter):
    """Keeps what a command would print."""

    def __init__(self) -> None:
        self.notes, self.begun, self.epochs, self.stop = [], [], 0, ""

    def row_started(self, name: str) -> None:
        self.begun.append(name)
        if name == self.stop:
            raise KeyboardInterrupt

    def epoch_finished(self, record) -> None:
        self.epochs += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


def read(out):
    with (out / "table1.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_run_once_and_the_papers_numbers_stand_beside(labelled, checkpoint, faces, tmp_path):
    out, stopped, resumed = tmp_path / "table", Notes(), Notes()
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", out)
    settings = SETTINGS | {"backbone": str(checkpoint), "cache": {"face": faces}, "test": labelled / "valid.csv"}
    stopped.stop = "+ dropout"
    with pytest.raises(KeyboardInterrupt):
        emi.table1(*files, **settings, reporter=stopped)
    assert sorted(stopped.begun) == sorted(NAMES)
    assert not (out / "table1.csv").exists()
    found = emi.table1(*files, **settings, reporter=resumed)
    assert resumed.epochs == 2  # alone and on all clips: the last row only
    rows = read(out)
    assert [row["row"] for row in rows] == NAMES
    assert [row["paper_valid"] for row in rows] == ["", "", "", "0.031", "0.198", "0.262", "0.28", "0.386", "0.389"]
    assert [row["paper_test"] for row in rows][:3] == ["0.09", "0.24", "0.25"]
    assert [row["test_on_all"] != "" for row in rows] == [False] * 7 + [True] * 2
    assert float(rows[5]["test"]) == pytest.approx(float(rows[5]["ensemble"]))  # the test file is the validation file
    assert [row["head"].endswith("(ours)") for row in rows] == [False] * 3 + [True] * 2 + [False] * 4
    assert rows[2]["features"] == "small (35); import:vit (5)"
    assert rows[7]["features"] == "small (35), learning"
    assert (out / "table1.svg").stat().st_size > 5000
    assert found.markdown() == (out / "table1.md").read_text()
    assert all(row["row"] in found.table() for row in rows)
    again = emi.table1(*files, **settings)
    assert again.nothing_to_do
    assert again.csv() == (out / "table1.csv").read_text()


def test_rows_of_faces_are_left_out_where_media_are_sound_alone(labelled, tmp_path):
    out, heard = tmp_path / "table", Notes()
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", out)
    found = emi.table1(*files, **SETTINGS, backbone="silero", reporter=heard)
    assert [made.row.name for made in found.rows] == OF_AUDIO
    (sentence,) = [note for note in heard.notes if note.startswith("left out")]
    assert sentence.startswith("left out: baseline: vision, baseline: both, vision only, multimodal (no file looked at")
    assert sentence in (out / "table1.md").read_text()
    assert not (out / "faces.zarr").exists()
    assert not (out / "failures.csv").exists()


def test_given_features_make_the_frozen_rows_without_media(labelled, labelled_cache, faces, tmp_path):
    out = tmp_path / "table"
    arguments = ["table1", "--train", labelled / "train.csv", "--valid", labelled / "valid.csv", "--out", out]
    arguments += ["--cache", f"audio={labelled_cache}", "--cache", f"face={faces}", "--seeds", 1, "--epochs", 1]
    for setting in ("hidden=8", "face.head=gru", "face.dropout=0"):
        arguments += ["--set", setting]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert "left out: + unfrozen, + dropout (there is no --backbone that could learn)" in done.output
    rows = read(out)
    assert [row["row"] for row in rows] == NAMES[:7]
    assert rows[3]["head"] == "gru, global vector (ours)"
    assert rows[4]["head"] == "audio: lstm; face: gru, global vector, a head per stream, joined by concat (ours)"
    assert rows[0]["head"] == rows[1]["head"] == "linear on the time mean"
    assert rows[6]["head"] == "lstm, global vector"


def test_rows_of_faces_are_left_out_where_no_clip_shows_a_face(labelled, labelled_cache, tmp_path):
    header = Header(
        fingerprint={"backbone": "faces", "dtype": "float32"},
        dim=4,
        hop_seconds=0.1,
        modality="face",
        optional=("valid",),
    )
    with CacheWriter(tmp_path / "f.zarr", header) as writer:
        for clip in emi.open_cache(labelled_cache).ids:
            writer.add(Clip(clip, np.zeros((1, 4), np.float32), None, None, 1.0, None, np.zeros(1, bool)))
    files, notes = (None, labelled / "train.csv", labelled / "valid.csv", tmp_path / "table"), Notes()
    how = {key: value for key, value in SETTINGS.items() if key != "backbone_lr"}
    reason = f"(no face was found in any clip of {tmp_path / 'f.zarr'})"
    found = emi.table1(*files, cache={"audio": labelled_cache, "face": tmp_path / "f.zarr"}, reporter=notes, **how)
    assert [row["row"] for row in read(tmp_path / "table")] == OF_AUDIO[:3]
    sentence = f"left out: baseline: vision, baseline: both, vision only, multimodal {reason}"
    assert sentence in found.left_out
    assert sentence in notes.notes
    with pytest.raises(TrainSettingsError, match=r"no face was found in any clip of .*; add --cache audio=PATH"):
        emi.table1(*files[:3], tmp_path / "other", cache={"face": tmp_path / "f.zarr"}, epochs=1)


def test_voice_and_face_of_videos_are_extracted(tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(8):
        write(tmp_path / "clips" / f"{i}.mkv", i, face=i != 4)
    for split, part in (("train", range(5)), ("valid", range(5, 8))):
        lines = "".join(f"{i},0.{i},0.{9 - i}\n" for i in part)
        (tmp_path / f"{split}.csv").write_text(f"Filename,Joy,Calm\n{lines}")
    files = (tmp_path / "clips", tmp_path / "train.csv", tmp_path / "valid.csv", tmp_path / "table")
    heard = Notes()
    settings = SETTINGS | {"freeze": "backbone", "backbone": "silero"}
    found = emi.table1(*files, **settings, reporter=heard)
    assert [made.row.name for made in found.rows] == NAMES[:7]
    assert found.rows[2].features == "silero (384); mtcnn (266)"
    assert "left out: + unfrozen, + dropout (--freeze backbone)" in heard.notes
    assert emi.open_cache(tmp_path / "table" / "faces.zarr")["4"].valid.tolist() == [False]
    assert emi.table1(*files, **settings).nothing_to_do
    without = emi.table1(*files[:3], tmp_path / "sound", **settings, face_backbone="none")
    assert [made.row.name for made in without.rows] == OF_AUDIO[:3]
    assert any("(--face-backbone none)" in sentence for sentence in without.left_out)


def test_settings_of_streams_are_for_the_rows_that_are_ours():
    given = {"hidden": 8, "face.hidden": 4, "fusion.hidden": 16, "auxiliary": 0.3, "lr": 0.01}
    settings = row_settings(ROWS, **given)
    assert {of.lr for of in settings.values()} == {0.01}
    assert settings["vision"].stream("face").head_options["hidden"] == 4
    assert settings["multimodal"].stream("audio").head_options["hidden"] == 8
    assert settings["multimodal"].fusion_options["hidden"] == 16
    assert [settings[name].auxiliary for name in ("multimodal", "baseline-both", "frozen")] == [0.3, 0.0, 0.0]
    assert settings["frozen"].streams == {}
    assert settings["baseline-both"].fusion == "late"
    assert describe_head(settings["dropout"], ROWS[-1]) == "lstm, global vector, dropout 0.1"
    with pytest.raises(TrainSettingsError, match="unknown stream in the settings 'fcae'; did you mean 'face'"):
        row_settings(ROWS, **{"fcae.hidden": 4})
    with pytest.raises(
        TrainSettingsError, match=r"face.hidden is a setting of the rows with faces, which are left out"
    ):
        row_settings([row for row in ROWS if row.streams == ("audio",)], **{"face.hidden": 4})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "there is nothing to train on; give --media, or --cache NAME=PATH"),
        ({"cache": {"text": "t.zarr"}}, "--cache is given as audio=PATH or face=PATH here, got text"),
        ({"cache": {"audio": "a.zarr"}, "backbone": "silero"}, "give them with --media, or leave it out"),
        ({"media": "clips"}, "give --backbone, or the features as --cache audio=PATH"),
    ],
)
def test_what_is_missing_is_said(given, said):
    with pytest.raises(TrainSettingsError, match=said):
        TableData(label_files=LabelFiles.named("train.csv"), **given)


def test_a_backbone_of_another_stream_is_refused_before_anything_is_extracted(labelled, tmp_path):
    files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv", tmp_path / "table")
    with pytest.raises(TrainSettingsError, match="--backbone mtcnn gives the stream 'face', not 'audio'"):
        emi.table1(*files, backbone="mtcnn")
    assert not (tmp_path / "table").exists()


def test_frozen_rows_are_extracted_in_the_precision_of_the_others(labelled, checkpoint, tmp_path, monkeypatch):
    asked = []

    def extract(media, cache, how, **_):
        asked.append(how.precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "extract", extract)
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
        assert whole_by_older_decoder(cache, how, labels)
        assert not whole_by_older_decoder(cache, replace(how, max_seconds=5.0), labels)
        more = replace(labels["valid"], filenames=("77", *labels["valid"].filenames[1:]))
        assert not whole_by_older_decoder(cache, how, labels | {"valid": more})
