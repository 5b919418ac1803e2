"""Six folds as systems for Aff-Wild2 have them, and what their runs predict together."""

import csv
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from emi.cli import app
from tests.train_head import affwild
from train_head.data.frame_labels import read_frame_labels
from train_head.data.label_format import LabelFormat
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.runs.centring import centred_mean
from train_head.validation import Validation

QUICK = affwild.SETTINGS | {"head": "gru", "hidden": 4, "epochs": 1, "lr": 1e-2, "batch_size": 4, "ids": ["aff-wild2"]}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
    monkeypatch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return affwild.make(tmp_path_factory.mktemp("affwild"), seconds=2.0)


@pytest.fixture(scope="module")
def six(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "six"
    how = QUICK | {"smooth": "mean", "smooth_rows": 3, "seed": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
        patch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)
        result = emi.train_head(
            data.caches, data.train, data.valid, out, **how, folds="official6", test=data.root / "example.txt"
        )
    return out, result


def read(place):
    return read_frame_labels(place, LabelFormat(range=(-1, 1)), check_range=False)


def test_five_folds_are_of_training_clips_in_order_and_the_sixth_is_the_validation_split(six):
    out, result = six
    with (out / "folds.csv").open(newline="") as file:
        fold = {row["Filename"]: int(row["fold"]) for row in csv.DictReader(file)}
    of_train = sorted(affwild.TRAIN, key=lambda trial: (affwild.video_of(trial), trial))
    assert [fold[trial] for trial in of_train] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {fold[trial] for trial in affwild.VALID} == {5}
    assert len(result.members) == 6
    for number in range(6):
        part = read(out / f"fold-{number}" / "predictions_valid")
        assert {fold[clip] for clip in part.ids} == {number}
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["protocol"] == {"kind": "folds", "folds": "official6"}
    assert config["data"]["group_by"].endswith("(?:_left|_right)?$")
    assert "The folds share no group" in result.table()


def test_the_folds_predict_every_row_of_the_annotations_and_of_the_template(data, six):
    out, _ = six
    labels, found = read(out / "labels_folds"), read(out / "predictions_folds")
    assert found.lengths.tolist() == labels.lengths.tolist()
    assert dict(zip(labels.ids, labels.lengths.tolist(), strict=True)) == {
        trial: len(data.truth[trial]) + affwild.MORE_ROWS.get(trial, 0) for trial in (*affwild.TRAIN, *affwild.VALID)
    }
    test = read(out / "predictions_test")
    assert dict(zip(test.ids, test.lengths.tolist(), strict=True)) == {t: len(data.truth[t]) for t in affwild.TEST}
    parts = [read(out / f"fold-{number}" / "predictions_test").values for number in range(6)]
    np.testing.assert_allclose(test.values, np.mean(parts, axis=0), atol=1e-6)


def test_the_same_command_resumes_and_other_folds_are_another_run(data, six):
    out, _ = six
    how = QUICK | {"smooth": "mean", "smooth_rows": 3, "seed": 1, "test": data.root / "example.txt"}
    files = (data.caches, data.train, data.valid, out)
    assert emi.train_head(*files, **how, folds="official6").nothing_to_do
    assert emi.train_head(*files, **how, folds="official6", only_fold=5).nothing_to_do
    with pytest.raises(RunFolderError, match=r"--folds \(there 'official6', now 6\)"):
        emi.train_head(*files, **how, folds=6)


def test_folds_are_averaged_after_centring_where_asked_for(six, tmp_path):
    out, _ = six
    found = emi.ensemble([out], tmp_path / "centred", centre=True)
    assert len(found.members) == 6
    parts = [read(out / f"fold-{number}" / "predictions_test") for number in range(6)]
    expected = centred_mean(np.stack([p.values for p in parts]).astype(float), [1 / 6] * 6, parts[0].lengths)
    centred = read(tmp_path / "centred" / "predictions_test").values
    np.testing.assert_allclose(centred, expected, atol=1e-6)
    assert not np.allclose(centred, read(out / "predictions_test").values, atol=1e-6)
    assert tomllib.loads((tmp_path / "centred" / "ensemble.toml").read_text())["centre"] is True
    assert emi.ensemble([out], tmp_path / "centred", centre=True).nothing_to_do
    with pytest.raises(RunFolderError, match="holds another run"):
        emi.ensemble([out], tmp_path / "centred")
    plain = emi.ensemble([out / f"fold-{number}" for number in range(6)], tmp_path / "plain")
    np.testing.assert_allclose(
        read(tmp_path / "plain" / "predictions_test").values, read(out / "predictions_test").values, atol=1e-6
    )
    assert "no clips that were kept from training" in plain.table()


def test_predictions_of_clips_have_no_level_to_centre(labelled, labelled_cache, tmp_path):
    for seed in (0, 1):
        emi.train_head(
            labelled_cache,
            labelled / "train.csv",
            labelled / "valid.csv",
            tmp_path / f"{seed}",
            head="mean",
            epochs=1,
            seed=seed,
        )
    with pytest.raises(TrainSettingsError, match="--centre is for predictions per frame"):
        emi.ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "both", centre=True)
    assert not (tmp_path / "both").exists()


def test_official_folds_need_a_validation_split_and_five_videos(data, tmp_path):
    with pytest.raises(TrainSettingsError, match="takes the validation split as its sixth fold; give --valid"):
        emi.train_head(data.caches, data.train, out=tmp_path / "run", **QUICK, folds="official6")
    few = tmp_path / "Train_Set"
    few.mkdir()
    for trial in list(affwild.TRAIN)[:4]:
        (few / f"{trial}.txt").write_text((data.train / f"{trial}.txt").read_text())
    with pytest.raises(LabelError, match=r"its 3 groups of clips \(1-30-1280x720, .*\) are too few"):
        emi.train_head(data.caches, few, data.valid, tmp_path / "run", **QUICK, folds="official6")
    assert not (tmp_path / "run").exists()


def test_folds_are_a_number_or_the_official_ones():
    assert Validation(folds="4").folds == 4
    assert Validation(folds="official6", only_fold=5).folds == "official6"
    with pytest.raises(TrainSettingsError, match="--only-fold takes 0 to 5"):
        Validation(folds="official6", only_fold=6)
    with pytest.raises(TrainSettingsError, match="a number or official6, got 'official'"):
        Validation(folds="official")


def test_the_commands_go_from_folds_to_a_submission(data, six, tmp_path):
    out, _ = six

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    template, file = data.root / "example.txt", tmp_path / "predictions.txt"
    run("ensemble", out, "--out", tmp_path / "centred", "--centre")
    run("submission", tmp_path / "centred", "--template", template, "--out", file)
    assert "can be submitted" in run("evaluate", file, template, "--submission")
    expected = read(tmp_path / "centred" / "predictions_test")
    lines = file.read_text().splitlines()
    wanted = template.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [line.split(",")[0] for line in wanted]
    name, *values = lines[-1].split(",")
    assert name.startswith("301-30-640x480/")
    last = expected.values[expected.rows_of([expected.ids.index("301-30-640x480")])][-1]
    np.testing.assert_array_equal(np.array(values, np.float32), np.clip(last, -1, 1))
    lines[1], lines[2] = lines[2], lines[1]
    file.write_text("\n".join([*lines[:-1], ""]))
    said = run("evaluate", file, template, "--submission", code=1)
    assert "1 rows are missing (first: 301-30-640x480/00050.jpg)" in said
    assert "2 rows are out of order" in said
