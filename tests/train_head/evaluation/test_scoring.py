"""Errors by intensity against pandas, and predictions lined up with labels."""

from pathlib import Path

import numpy as np
import pytest

import emi
from train_head.data.label_format import label_format
from train_head.errors import LabelError
from train_head.evaluation.scoring import EDGES, errors_by_bin, read_pair

LABELS = "Filename,Joy,Speaker,Sad\n1,0,anna,1\n2,1,ben,0.5\n3,0.5,anna,0\n"


def write(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_errors_by_bin_equal_those_of_a_grouped_data_frame():
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    target = rng.choice([0, 0.1, 0.25, 0.4, 0.5, 0.7, 0.75, 0.9, 1], size=(300, 2))
    predicted = target + rng.normal(scale=0.1, size=target.shape)
    found = errors_by_bin(predicted, target, ["Joy", "Sad"]).targets
    for k, name in enumerate(found):
        place = pandas.cut(target[:, k], [*EDGES[:-1], 1 + 1e-9], right=False)
        frame = pandas.DataFrame({"error": predicted[:, k] - target[:, k], "place": place})
        grouped = frame.groupby("place", observed=False)["error"]
        assert found[name]["count"] == grouped.count().tolist()
        assert found[name]["mae"] == pytest.approx(grouped.apply(lambda e: e.abs().mean()).tolist())
        assert found[name]["bias"] == pytest.approx(grouped.mean().tolist())
    assert sum(sum(errors["count"]) for errors in found.values()) == 600


def test_zero_is_a_bin_of_its_own_and_one_belongs_to_the_last():
    found = errors_by_bin([[0.5], [0.5], [0.5]], np.array([[0], [1e-6], [1]], np.float32), ["Joy"])
    assert found.targets["Joy"]["count"] == [1, 1, 0, 0, 1]
    assert found.targets["Joy"]["bias"] == pytest.approx([0.5, 0.5 - 1e-6, None, None, -0.5])
    assert found.bins == ("0", "0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")
    assert "—" in found.table()
    assert found.to_dict()["targets"]["Joy"]["mae"][2] is None


def test_a_missing_label_is_in_no_bin():
    target = np.array([[0.1, 0.9], [np.nan, 0.8], [0.6, np.nan]])
    found = errors_by_bin(np.full((3, 2), 0.5), target, ["Joy", "Sad"]).targets
    assert [found[name]["count"] for name in ("Joy", "Sad")] == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 2]]
    assert found["Sad"]["mae"][-1] == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("target", "edges", "message"),
    [
        ([[0.5], [1.5]], EDGES, r"labels lie from 0\.5 to 1\.5"),
        ([[0.5], [0.5]], (0, 0.5, 0.5, 1), "must ascend"),
        ([[0.5], [0.5]], (0,), "must ascend"),
        ([[0.5]], EDGES, r"expected both \(clips, 1\)"),
    ],
)
def test_labels_outside_the_bins_and_wrong_bins_are_refused(target, edges, message):
    with pytest.raises(ValueError, match=message):
        errors_by_bin([[0.5], [0.5]], target, ["Joy"], edges)


def test_predictions_come_in_the_order_of_the_labels_with_their_groups(tmp_path):
    guess = write(tmp_path, "Filename,Sad,Joy\n00003,.6,.5\n1,.4,.1\n2,.5,.2\n", "guess.csv")
    predicted, truth = read_pair(guess, write(tmp_path, LABELS), label_format(group_by="Speaker"))
    np.testing.assert_allclose(predicted, [[0.1, 0.4], [0.2, 0.5], [0.5, 0.6]])
    assert truth.groups == ("anna", "ben", "anna")
    assert truth.names == ("Joy", "Sad")


def test_labels_without_targets_cannot_be_scored_against(tmp_path):
    guess = write(tmp_path, "Filename,Joy\n1,0\n", "guess.csv")
    with pytest.raises(LabelError, match="nothing to score against"):
        read_pair(guess, write(tmp_path, "Filename\n1\n"))


def test_folds_of_a_part_of_the_clips_can_be_scored_with_the_labels_beside_them(labelled, labelled_cache, tmp_path):
    text = (labelled / "train.csv").read_text() + "gone,0.5,0.5\n"
    (tmp_path / "train.csv").write_text(text)
    how = {"folds": 2, "skip_missing": True, "head": "mean", "epochs": 2}
    emi.train_head(labelled_cache, tmp_path / "train.csv", out=tmp_path / "run", **how)
    predicted, _ = read_pair(tmp_path / "run" / "predictions_folds.csv", tmp_path / "run" / "labels_folds.csv")
    assert predicted.shape == (28, 2)
