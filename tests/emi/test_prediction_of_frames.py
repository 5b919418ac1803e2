"""A run on labels per frame predicts media: a file per clip, equal to what it predicts from a cache."""

import csv
import os

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from emi import prediction
from emi.cli import app
from train_head.data.frame_labels import read_frame_labels
from train_head.errors import RunFolderError

FPS = 10
HOW = {"head": "gru", "hidden": 4, "epochs": 1, "loss": "ccc", "label_range": (-1, 1), "precision": "fp32"}


@pytest.fixture(scope="module")
def data(labelled, labelled_cache, tmp_path_factory):
    """Labels of ten rows a second, in folders and in tables with times, and a run on those in folders."""
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    store = emi.open_cache(labelled_cache)
    for split, clips in (("train", store.ids[:12]), ("valid", store.ids[12:18])):
        lines = ["Filename,time,valence,arousal"]
        for clip in clips:
            values = rng.uniform(-1, 1, (round(store[clip].seconds * FPS), 2))
            rows = [f"{v:.4f},{a:.4f}" for v, a in values]
            (folder / split).mkdir(exist_ok=True)
            (folder / split / f"{clip}.txt").write_text("\n".join(["valence,arousal", *rows, ""]))
            lines += [f"{clip},{i / FPS:.2f},{row}" for i, row in enumerate(rows)]
        (folder / f"{split}.csv").write_text("\n".join([*lines, ""]))
    train(labelled_cache, folder, folder / "run", label_fps=FPS)
    media = folder / "media"
    (media / "inner").mkdir(parents=True)
    for clip in store.ids[12:18]:
        os.link(labelled / "audio" / f"{clip}.wav", media / f"{clip}.wav")
    return folder


def train(cache, folder, out, suffix="", **settings):
    return emi.train_head(cache, folder / f"train{suffix}", folder / f"valid{suffix}", out, **HOW | settings)


def predict(data, run, out, *more):
    arguments = ["predict", data / "media", "--model", run, "--out", out, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def values(folder):
    return {file.stem: np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2) for file in folder.rglob("*.txt")}


def assert_equal(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for clip in found:
        np.testing.assert_allclose(found[clip], expected[clip], rtol=0, atol=atol)


VALID = {"head": "tcn", "layers": 1, "window": 6, "hop": 1, "overlap": "valid"}


@pytest.mark.parametrize("windows", [{}, {"window": 4, "hop": 3}, VALID])
def test_the_files_are_those_of_the_prediction_from_a_cache(data, labelled_cache, tmp_path, windows):
    train(labelled_cache, data, tmp_path / "run", label_fps=FPS, **windows)
    done = predict(data, tmp_path / "run", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"wrote the rows of 6 clips into {tmp_path / 'out'}" in done.output
    assert_equal(values(tmp_path / "out"), values(tmp_path / "run" / "predictions_valid"))
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".txt"] * 6
    scored = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), str(data / "valid"), "--label-range=-1,1"])
    assert scored.exit_code == 0, scored.output
    assert read_frame_labels(tmp_path / "out", check_range=False).names == ("valence", "arousal")


def test_several_runs_predict_their_mean(data, labelled_cache, tmp_path):
    train(labelled_cache, data, tmp_path / "seeds", label_fps=FPS, seeds=2)
    assert "emi predict MEDIA --model THIS_FOLDER --out FOLDER\n" in (tmp_path / "seeds" / "README.md").read_text()
    assert predict(data, tmp_path / "seeds", tmp_path / "one").exit_code == 0
    assert_equal(values(tmp_path / "one"), values(tmp_path / "seeds" / "predictions_valid"))
    train(labelled_cache, data, tmp_path / "windows", label_fps=FPS, window=4)  # not one module with the seeds
    emi.ensemble([tmp_path / "seeds", tmp_path / "windows"], tmp_path / "both", weights=[3, 1])
    assert "--out FOLDER\n" in (tmp_path / "both" / "README.md").read_text()
    done = predict(data, tmp_path / "both", tmp_path / "two")
    assert done.exit_code == 0, done.output
    assert_equal(values(tmp_path / "two"), values(tmp_path / "both" / "predictions_valid"))


def test_a_command_that_was_stopped_resumes_and_failures_are_tried_again(data, tmp_path, monkeypatch):
    done, real = [], prediction.predict_label_rows

    def killed(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(prediction, "predict_label_rows", killed)
    assert predict(data, data / "run", tmp_path / "out").exit_code != 0
    assert len(values(tmp_path / "out")) == 3
    monkeypatch.setattr(prediction, "predict_label_rows", real)
    broken = data / "media" / "inner" / "broken.wav"
    broken.write_bytes(b"")
    try:
        found = predict(data, data / "run", tmp_path / "out")
        assert found.exit_code == 1
        assert "3 of 7 clips were predicted before" in found.output
        assert "wrote the rows of 3 clips" in found.output
        with (tmp_path / "failures.csv").open(newline="") as file:
            assert [row["id"] for row in csv.DictReader(file)] == ["inner/broken"]
    finally:
        broken.unlink()
    again = predict(data, data / "run", tmp_path / "out")
    assert "6 of 6 clips were predicted before" in again.output
    assert not (tmp_path / "out" / "predictions.partial").exists()
    assert_equal(values(tmp_path / "out"), values(data / "run" / "predictions_valid"))


def test_a_run_on_labels_with_times_needs_a_rate(data, labelled_cache, tmp_path):
    train(labelled_cache, data, tmp_path / "run", ".csv")
    assert all((run / "scatter_valid.svg").is_file() for run in (data / "run", tmp_path / "run"))
    assert "--out FOLDER --label-fps 25\n" in (tmp_path / "run" / "README.md").read_text()
    failed = predict(data, tmp_path / "run", tmp_path / "out")
    assert isinstance(failed.exception, RunFolderError)
    assert "give --label-fps" in str(failed.exception)
    assert predict(data, tmp_path / "run", tmp_path / "out", "--label-fps", FPS).exit_code == 0
    expected = read_frame_labels(tmp_path / "run" / "predictions_valid.csv", check_range=False)
    parts = np.split(expected.values, expected.offsets[1:-1])
    assert_equal(values(tmp_path / "out"), dict(zip(expected.ids, parts, strict=True)))
    assert predict(data, tmp_path / "run", tmp_path / "fast", "--label-fps", 2 * FPS).exit_code == 0
    for clip, rows in values(tmp_path / "out").items():
        assert len(values(tmp_path / "fast")[clip]) - 2 * len(rows) in (-1, 0, 1)


def test_a_submission_has_the_rows_of_its_template_and_only_its_clips_are_predicted(data, tmp_path):
    expected, file = values(data / "run" / "predictions_valid"), tmp_path / "predictions.txt"
    clips = sorted(expected)[1:3]
    rows = [f"{clip}/{i + 1:05d}.jpg" for clip in reversed(clips) for i in range(len(expected[clip]))]
    template = tmp_path / "example.txt"
    template.write_text("\n".join(["image_location,valence,arousal", *(f"{row},0,0" for row in rows), ""]))
    done = predict(data, data / "run", tmp_path / "out", "--template", template, "--submission", file)
    assert done.exit_code == 0, done.output
    assert sorted(values(tmp_path / "out")) == clips
    header, *lines = (line.split(",") for line in file.read_text().splitlines())
    assert header == ["image_location", "valence", "arousal"]
    assert [line[0] for line in lines] == rows
    wanted = np.clip(np.concatenate([expected[clip] for clip in reversed(clips)]), -1, 1)
    np.testing.assert_allclose(np.array([line[1:] for line in lines], float), wanted, atol=1e-5)
    alone = predict(data, data / "run", tmp_path / "out", "--submission", file)
    assert "are those of --template, the organisers' example" in str(alone.exception)
    template.write_text("image_location\nsomebody/00001.jpg\n")
    other = predict(data, data / "run", tmp_path / "out", "--template", template, "--submission", file)
    assert "1 of its 1 clips are not among the media (first: somebody)" in str(other.exception)


def test_what_does_not_go_together_is_refused(data, labelled, labelled_cache, tmp_path):
    files = (labelled / "train.csv", labelled / "valid.csv", tmp_path / "clips")
    emi.train_head(labelled_cache, *files, head="mean", epochs=1)
    place = ["predict", str(data / "media"), "--model"]
    cases = [
        ([str(data / "run")], "give --out FOLDER alone"),
        ([str(data / "run"), "--csv", str(tmp_path / "p.csv")], "give --out FOLDER alone"),
        ([str(tmp_path / "clips"), "--out", str(tmp_path / "out")], "give --csv FILE instead of --out"),
        ([str(tmp_path / "clips"), "--label-fps", "5"], "leave out --label-fps"),
        ([str(data / "run"), "--out", str(files[0])], "is a file; name a folder"),
    ]
    for arguments, said in cases:
        failed = CliRunner().invoke(app, place + arguments)
        assert said in str(failed.exception), arguments
    with pytest.raises(RunFolderError, match="predicts every frame, and this gives a value per clip"):
        emi.load(data / "run").predict(data / "media")
    assert not (tmp_path / "out").exists()
