"""Labels on scales of their own: mapped to [0, 1] for training, and back in all that is predicted."""

import csv

import numpy as np
import pytest
import torch

import emi
from train_head.data.label_format import LabelFormat, label_format, parse_range
from train_head.data.labels import read_labels
from train_head.data.names import UNNAMED
from train_head.data.streams import Rows
from train_head.errors import LabelError, TrainSettingsError
from train_head.runs.load import load_head
from train_head.runs.run_folder import read_config_file
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings, resolve_settings

QUICK = {"head": "sequence", "hidden": 8, "epochs": 1, "lr": 3e-3, "precision": "fp32", "device": "cpu"}


@pytest.mark.parametrize(
    ("cells", "hint"),
    [
        ("0.5 -0.2 1", "--label-range -1,1"),
        ("-1 0 1", "--label-range -1,1"),
        ("1 5 3", "--label-range 1,5"),
        ("2.5 1 4", "--label-range 1,5"),
        ("7 1 4", "--label-range 1,7"),
        ("9 1 2", "--label-range 1,9"),
        ("0 3 5", "--label-range 0,5"),
        ("0 10 5", "--label-range 0,10"),
        ("1 3 57", "--label-scale 100"),
        ("0 100 5", "--label-scale 100"),
        ("-40 100 5", "--label-range -100,100"),
        ("0 1000", "--label-range MIN,MAX"),
    ],
)
def test_the_hint_looks_at_the_whole_column(tmp_path, cells, hint):
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells.split()))
    (tmp_path / "l.csv").write_text(f"Filename,Joy\n{rows}")
    with pytest.raises(LabelError, match=rf"outside 0 to 1; give {hint}\b"):
        read_labels(tmp_path / "l.csv")


def test_values_keep_their_own_scale_and_are_mapped_for_training(tmp_path):
    (tmp_path / "l.csv").write_text("Filename,V\n1,-1\n2,0\n3,\n4,1\n")
    labels = read_labels(tmp_path / "l.csv", label_format(label_range="-1,1"))
    np.testing.assert_array_equal(labels.values.ravel(), [-1, 0, np.nan, 1])
    np.testing.assert_array_equal(labels.unit_values.ravel(), [0, 0.5, np.nan, 1])
    assert read_labels(tmp_path / "l.csv", label_format(label_range=(-1, 3))).range == (-1.0, 3.0)
    with pytest.raises(LabelError, match=r"V: -1 is outside 1 to 5; mend it, or the scale that was given"):
        read_labels(tmp_path / "l.csv", label_format(label_range="1,5"))


@pytest.mark.parametrize("value", ["1", "1,1", "5,1", "a,b", "0,inf", "1,2,3", (1,), [0, None], 5])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(LabelError, match="must be MIN,MAX"):
        parse_range(value)
    with pytest.raises(TrainSettingsError, match="must be MIN,MAX"):
        resolve_settings(label_range=value)


def test_a_scale_and_a_range_do_not_go_together():
    with pytest.raises(LabelError, match="do not go together"):
        LabelFormat(scale=100.0, range=(-1, 1))
    with pytest.raises(TrainSettingsError, match="do not go together"):
        resolve_settings(label_scale=100, label_range="-1,1")


def test_settings_record_a_range_only_where_it_is_another(tmp_path):
    assert "label_range" not in TrainSettings().to_toml()
    assert "label_range" not in resolve_settings(label_range="0,1").to_toml()
    (tmp_path / "c.toml").write_text("label_range = [1, 5]\n")
    assert resolve_settings(tmp_path / "c.toml").label_range == (1.0, 5.0)
    assert resolve_settings(tmp_path / "c.toml").to_toml()["label_range"] == [1.0, 5.0]


def test_intensities_per_frame_are_on_the_labels_scale_and_zero_behind_the_end():
    settings = {"head": "sequence", "hidden": 4}
    plain, ranged = (resolve_settings(**settings, label_range=r) for r in ((0, 1), (-1, 1)))
    one, other = (Predictor(s, {UNNAMED: 3}, 2).eval() for s in (plain, ranged))
    other.load_state_dict(one.state_dict())
    frames, lengths = torch.randn(2, 5, 3), torch.tensor([5, 3])
    streams = {UNNAMED: Rows(frames, lengths)}
    torch.testing.assert_close(other(streams), 2 * one(streams) - 1)
    rows = other.per_frame(frames, lengths)
    torch.testing.assert_close(rows[1, :3], 2 * one.per_frame(frames, lengths)[1, :3] - 1)
    assert not rows[1, 3:].any()
    torch.testing.assert_close(other.outputs(streams), one.outputs(streams))


@pytest.fixture(scope="module")
def runs(labelled, labelled_cache, tmp_path_factory):
    """The same run on labels from 0 to 1 and, as V = 2 v - 1, from -1 to 1."""
    root = tmp_path_factory.mktemp("ranged")
    for name in ("train", "valid"):
        with (labelled / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, delimiter=";").writerows(
                [
                    [*header, "who"],
                    *([clip, *(f"{2 * float(v) - 1:.3f}" for v in values), "x"] for clip, *values in rows),
                ]
            )
    files = [{name: place / f"{name}.csv" for name in ("train", "valid")} for place in (labelled, root)]
    plain = emi.train_head(labelled_cache, **files[0], out=root / "plain", **QUICK)
    ranged = emi.train_head(labelled_cache, **files[1], out=root / "ranged", label_range=(-1, 1), **QUICK)
    return root, plain, ranged


def test_predictions_and_errors_are_on_the_labels_own_scale(runs):
    root, plain, ranged = runs
    one, other = (
        read_labels(root / n / "predictions_valid.csv", check_range=False).values for n in ("plain", "ranged")
    )
    np.testing.assert_allclose(other, 2 * one - 1, atol=1e-4)
    np.testing.assert_allclose(ranged.report.mae, 2 * np.array(plain.report.mae), atol=1e-4)
    np.testing.assert_allclose(ranged.report.pearson, plain.report.pearson, atol=1e-4)
    assert ranged.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-4)


def test_the_run_records_its_range_and_a_loaded_head_predicts_on_it(runs, labelled_cache):
    root, _, _ = runs
    assert read_config_file(root / "ranged")["label_range"] == [-1.0, 1.0]
    assert "label_range" not in read_config_file(root / "plain")
    trained = load_head(root / "ranged")
    predicted = read_labels(root / "ranged" / "predictions_valid.csv", check_range=False)
    with emi.open_cache(labelled_cache) as store:
        np.testing.assert_allclose(trained.predict(store[predicted.ids[0]]), predicted.values[0], atol=1e-5)
    assert "in [-1, 1]" in (root / "ranged" / "README.md").read_text()
    assert "may lie outside [-1, 1]" in (root / "ranged" / "README.md").read_text()


def test_a_finished_run_is_found_again_and_another_range_is_another_run(runs, labelled_cache):
    root, _, _ = runs
    files = {"train": root / "train.csv", "valid": root / "valid.csv", "out": root / "ranged"}
    assert emi.train_head(labelled_cache, **files, label_range="-1,1", **QUICK).resumed_at == 1
    with pytest.raises(emi.EmiError, match=r"--label-range .*give --label-range -1,1"):
        emi.train_head(labelled_cache, **files, label_range="-1,2", **QUICK)


def test_compare_reads_labels_as_the_runs_did(runs):
    from train_head.evaluation.compare import compare

    root, _, _ = runs
    assert compare(root / "ranged", root / "ranged", resamples=10).difference.clips == 12
    with pytest.raises(LabelError, match="predict on different scales, 0 to 1 and -1 to 1"):
        compare(root / "plain", root / "ranged", labels=root / "valid.csv", resamples=10)
