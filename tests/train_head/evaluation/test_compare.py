"""Two runs on the same clips: which labels they are compared on, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.evaluation import compare as compare_module
from train_head.evaluation.compare import compare
from train_head.evaluation.intervals import paired_bootstrap
from train_head.evaluation.metrics import absolute_error, concordance, pearson
from train_head.runs.run_folder import file_sha256

NAMES = ["Joy", "Sad"]
RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(size=(30, 2)).round(3)
GOOD, BAD = ((TRUTH + RNG.normal(scale=scale, size=TRUTH.shape)).round(4) for scale in (0.1, 0.5))


def write(path: Path, values: np.ndarray, order: list[int] | None = None, names: list[str] = NAMES) -> Path:
    lines = [f"{i + 1},{','.join(map(str, values[i]))}" for i in order or range(len(values))]
    path.write_text("\n".join([f"Filename,{','.join(names)}", *lines]) + "\n")
    return path


def make_run(folder: Path, labels: Path, values: np.ndarray, order: list[int] | None = None, **config) -> Path:
    folder.mkdir()
    write(folder / "predictions_valid.csv", values, order)
    data = {"valid": str(labels), "valid_sha256": file_sha256(labels)}
    (folder / "config.toml").write_text(tomli_w.dumps({"label_scale": 1.0, **config, "data": data}))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write(tmp_path / "labels.csv", TRUTH)


@pytest.fixture
def runs(tmp_path: Path, labels: Path) -> tuple[Path, Path]:
    reversed_rows = list(range(30))[::-1]
    return make_run(tmp_path / "a", labels, GOOD), make_run(tmp_path / "b", labels, BAD, reversed_rows)


def test_runs_are_compared_on_their_own_labels_clip_by_clip(runs, labels):
    found = compare(*runs, resamples=300)
    expected = paired_bootstrap(*(v.astype(np.float32) for v in (GOOD, BAD, TRUTH)), NAMES, resamples=300)
    assert found.difference == expected
    assert found.notes == ()
    assert found.labels == str(labels)
    assert found.difference.targets["Joy"]["a_better"] > 0.99
    text = found.table()
    assert str(runs[0] / "predictions_valid.csv") in text
    assert "300 bootstrap resamples of 30 clips" in text


def test_two_prediction_files_need_labels_and_give_the_same(runs, labels, tmp_path):
    files = [run / "predictions_valid.csv" for run in runs]
    with pytest.raises(LabelError, match="give them with --labels"):
        compare(*files)
    assert compare(*files, labels=labels).difference == compare(*runs).difference
    assert compare(files[0], runs[1]).difference == compare(*runs).difference


def test_groups_are_resampled_as_wholes(runs):
    found = compare(*runs, group_by=r"\d$", resamples=100)
    assert found.difference.groups == 10
    assert "10 groups of 30 clips" in found.table()


def test_labels_that_changed_are_refused_until_they_are_named(runs, labels):
    write(labels, TRUTH * 0.5)
    with pytest.raises(LabelError, match=r"labels\.csv has changed since .*a was made.*--labels"):
        compare(*runs)
    found = compare(*runs, labels=labels)
    assert len(found.notes) == 2
    assert "was made with other labels" in found.table()


def test_labels_that_moved_are_found_by_the_other_run_or_named(tmp_path, labels, runs):
    moved = labels.rename(tmp_path / "moved.csv")
    with pytest.raises(LabelError, match="no longer at"):
        compare(*runs)
    other = make_run(tmp_path / "c", moved, BAD)
    assert compare(runs[0], other).labels == str(moved)
    assert compare(*runs, labels=moved).notes == ()


def test_runs_made_with_different_labels_are_refused(tmp_path, runs):
    other = make_run(tmp_path / "c", write(tmp_path / "other.csv", 1 - TRUTH), BAD)
    with pytest.raises(LabelError, match="different valid labels"):
        compare(runs[0], other)


def test_different_clips_are_refused_by_name(tmp_path, labels, runs):
    fewer = make_run(tmp_path / "c", labels, BAD[:28])
    for pair in ((runs[0], fewer), (fewer, runs[0])):
        with pytest.raises(LabelError, match=r"c/predictions_valid.csv lacks 2 .*first: 00029, 00030"):
            compare(*pair)


def test_clips_that_both_left_out_are_counted(tmp_path, labels):
    pair = [make_run(tmp_path / name, labels, values[:28]) for name, values in (("c", GOOD), ("d", BAD))]
    found = compare(*pair)
    assert (found.difference.clips, found.labelled) == (28, 30)
    assert "28 of its 30 clips were predicted" in found.table()
    assert found.to_dict()["labelled"] == 30


def test_clips_without_a_label_are_refused(tmp_path, runs):
    with pytest.raises(LabelError, match="25 predicted clips are not in"):
        compare(*runs, labels=write(tmp_path / "few.csv", TRUTH[:5]))


def test_other_targets_are_refused(tmp_path, runs):
    with pytest.raises(LabelError, match=r"no column 'Sad' among Joy, Fun.*--targets"):
        compare(*runs, labels=write(tmp_path / "fun.csv", TRUTH, names=["Joy", "Fun"]))


def test_the_scale_of_the_labels_is_that_of_the_runs(tmp_path):
    labels = write(tmp_path / "percent.csv", TRUTH * 100)
    pair = [make_run(tmp_path / n, labels, v, label_scale=100.0) for n, v in (("c", GOOD), ("d", BAD))]
    assert compare(*pair).difference.clips == 30


def test_a_folder_without_the_predictions_says_how_to_make_them(runs, tmp_path):
    with pytest.raises(LabelError, match=r"has no predictions_test\.csv; train it with --test"):
        compare(*runs, split="test")
    with pytest.raises(RunFolderError, match="is no run folder"):
        compare(runs[0], tmp_path)


@pytest.mark.parametrize(("metric", "function"), [("pearson", pearson), ("ccc", concordance), ("mae", absolute_error)])
def test_runs_are_compared_by_any_metric(runs, metric, function):
    found = compare(*runs, metric=metric, resamples=200).difference
    a, b, truth = (values.astype(np.float32) for values in (GOOD, BAD, TRUTH))
    wanted = [function(a[:, k], truth[:, k]) - function(b[:, k], truth[:, k]) for k in range(2)]
    assert [row["difference"] for row in found.targets.values()] == pytest.approx(wanted)
    assert found.mean["difference"] == pytest.approx(np.mean(wanted))
    assert found.mean["low"] < np.mean(wanted) < found.mean["high"]
    assert (found.mean["difference"] > 0) == (metric != "mae")
    assert found.mean["a_better"] > 0.95
    assert found.mean["p"] < 0.05
    assert (found.to_dict()["metric"], found.to_dict()["higher_is_better"]) == (metric, metric != "mae")


def test_an_unknown_metric_is_refused_with_the_known_ones(runs):
    with pytest.raises(TrainSettingsError, match="unknown metric 'mea'; did you mean 'mae'"):
        compare(*runs, metric="mea")


def test_errors_stand_beside_those_of_constant_predictions(tmp_path, runs, labels):
    found = compare(*runs, metric="mae", resamples=50)
    assert list(found.baselines) == ["all zeros"]
    train = write(tmp_path / "train.csv", 0.5 * TRUTH)
    data = {"valid": str(labels), "valid_sha256": file_sha256(labels)}
    data |= {"train": str(train), "train_sha256": file_sha256(train), "targets": NAMES}
    (runs[1] / "config.toml").write_text(tomli_w.dumps({"label_scale": 1.0, "data": data}))
    found = compare(*runs, metric="mae", resamples=50)
    truth = TRUTH.astype(np.float32).astype(float)
    wanted = np.abs((0.5 * TRUTH).mean(0) - truth).mean()
    assert f"mean of the training labels: MAE {wanted:.3f} (mean over targets)" in found.table()
    assert found.to_dict()["baselines"] == {
        "mean of the training labels": pytest.approx(wanted),
        "all zeros": pytest.approx(truth.mean()),
    }
    assert compare(*runs, resamples=50).baselines == {}


def test_missing_labels_are_left_out_per_target(tmp_path, monkeypatch, runs):
    gone = TRUTH.astype(np.float32)
    gone[::3, 1] = np.nan
    real = compare_module.read_beside
    monkeypatch.setattr(compare_module, "read_beside", lambda *given: replace(real(*given), values=gone))
    found = compare(*runs, resamples=100).difference
    known = ~np.isnan(gone[:, 1])
    a, b = (values.astype(np.float32)[known, 1] for values in (GOOD, BAD))
    assert found.counts == (30, 20)
    assert found.targets["Sad"]["difference"] == pytest.approx(pearson(a, gone[known, 1]) - pearson(b, gone[known, 1]))
    header, joy, sad = found.table().splitlines()[:3]
    assert (header.split()[0], joy.split()[1], sad.split()[1]) == ("clips", "30", "20")


def test_some_of_the_targets_are_compared_whatever_else_the_files_hold(runs, labels):
    whole = compare(*runs)
    some = compare(*runs, targets=NAMES[1])
    assert some.difference.names == (NAMES[1],)
    assert some.difference.targets[NAMES[1]]["a"] == whole.difference.targets[NAMES[1]]["a"]
