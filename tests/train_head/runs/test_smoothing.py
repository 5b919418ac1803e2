"""Smoothing of predictions: what it computes, how wide it is, what a run keeps of it, and what takes it over."""

import tomllib

import numpy as np
import pytest

import emi
from tests.train_head import affwild
from train_head.data.frame_labels import read_frame_labels
from train_head.data.label_format import LabelFormat
from train_head.data.labels import Labels
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.evaluation.metrics import concordance
from train_head.runs.smoothing import HALF_WIDTHS, Smoothing, choose_smoothing, read_smoothing
from train_head.training.settings import resolve_settings
from train_head.training.smoothing_kinds import moving_mean, moving_median

QUICK = affwild.SETTINGS | {"head": "gru", "hidden": 4, "epochs": 2, "lr": 1e-2, "batch_size": 4, "ids": ["aff-wild2"]}
FORM = LabelFormat(range=(-1, 1))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
    monkeypatch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return affwild.make(tmp_path_factory.mktemp("affwild"))


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 10, 11, 40])
@pytest.mark.parametrize("half", [0, 1, 5])
def test_windows_are_centred_and_end_with_the_clip(rows, half):
    values = np.random.default_rng(rows).normal(3, 1, rows)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(rows)]
    np.testing.assert_allclose(moving_mean(values, half), [w.mean() for w in windows], rtol=1e-12)
    np.testing.assert_array_equal(moving_median(values, half), [np.median(w) for w in windows])


def test_clips_are_smoothed_apart_and_targets_by_their_own_widths():
    values = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    smoothing = Smoothing(kind="mean", half_widths={"valence": 5, "arousal": 0}, chosen=True)
    found = smoothing.apply(values, np.array([10, 0, 20]))
    np.testing.assert_array_equal(found[:, 1], values[:, 1])
    for part in (slice(0, 10), slice(10, 30)):
        np.testing.assert_array_equal(
            found[part, 0], moving_mean(values[part, 0].astype(np.float64), 5).astype(np.float32)
        )


def test_the_width_with_the_highest_ccc_is_chosen_and_the_smallest_of_equals():
    rng = np.random.default_rng(0)
    slow = np.sin(np.arange(600) / 40)
    truth = np.column_stack([slow, slow]).astype(np.float32)
    truth[100:130] = np.nan
    values = np.column_stack([slow + rng.normal(size=600), np.zeros(600)]).astype(np.float32)
    labels = Labels("x", ("a", "b"), ("a", "b"), ("valence", "arousal"), truth, offsets=np.array([0, 250, 600]))
    chosen = choose_smoothing(resolve_settings(smooth="mean"), values, labels)
    scores = {}
    for half in HALF_WIDTHS:
        parts = [moving_mean(values[part, 0].astype(np.float64), half) for part in (slice(0, 250), slice(250, 600))]
        scores[half] = concordance(np.concatenate(parts), truth[:, 0])
    assert chosen.half_widths == {"valence": max(scores, key=scores.get), "arousal": 0}
    assert chosen.half_widths["valence"] > 0
    given = choose_smoothing(resolve_settings(smooth="median", smooth_rows=7), values, labels)
    assert (given.kind, given.half_widths, given.chosen) == ("median", {"valence": 7, "arousal": 7}, False)
    assert choose_smoothing(resolve_settings(), values, labels) is None


def test_a_run_keeps_its_widths_and_both_scores_and_its_files_are_smoothed(data, tmp_path):
    files = (data.caches, data.train, data.valid)
    raw = emi.train_head(*files, tmp_path / "raw", **QUICK, test=data.root / "example.txt")
    result = emi.train_head(*files, tmp_path / "run", **QUICK, test=data.root / "example.txt", smooth="mean")
    assert raw.smoothing is None
    assert not (tmp_path / "raw" / "smoothing.toml").exists()
    smoothing = result.smoothing
    valid = read_frame_labels(data.valid, FORM)
    expected = smoothing.apply(raw.predictions["valid"], valid.lengths)
    np.testing.assert_array_equal(result.predictions["valid"], expected)
    for split in ("valid", "test"):
        one, other = (
            read_frame_labels(tmp_path / name / f"predictions_{split}", FORM, check_range=False)
            for name in ("raw", "run")
        )
        np.testing.assert_array_equal(other.values, smoothing.apply(one.values, one.lengths))
    for k, name in enumerate(valid.names):
        scores = smoothing.scores["valid"][name]
        assert scores["raw"] == pytest.approx(raw.report.concordance[k], abs=1e-9)
        assert scores["smoothed"] == pytest.approx(result.report.concordance[k], abs=1e-9)
        assert scores["smoothed"] >= scores["raw"]
    stored = tomllib.loads((tmp_path / "run" / "smoothing.toml").read_text())
    assert stored["half_widths"] == dict(smoothing.half_widths)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "smoothed within each clip by a moving mean, half-width in label rows chosen on the validation clips" in card
    assert "raw, " in card
    assert "smoothed within" not in (tmp_path / "raw" / "README.md").read_text()
    again = emi.train_head(*files, tmp_path / "run", **QUICK, test=data.root / "example.txt", smooth="mean")
    assert again.smoothing == smoothing
    with pytest.raises(RunFolderError, match=r"--smooth \(there 'mean', now none\)"):
        emi.train_head(*files, tmp_path / "run", **QUICK, test=data.root / "example.txt")


def test_a_run_on_all_clips_takes_the_widths_that_were_chosen_before(data, tmp_path):
    how = QUICK | {"smooth": "mean", "train_on_all": True, "test": data.root / "example.txt"}
    emi.train_head(data.caches, data.train, data.valid, tmp_path / "run", **how)
    chosen, kept = (read_smoothing(tmp_path / "run" / place) for place in ("", "all"))
    assert kept.half_widths == chosen.half_widths
    assert kept.scores == {}


def test_damaged_smoothing_is_an_error(tmp_path):
    (tmp_path / "smoothing.toml").write_text("kind = ")
    with pytest.raises(RunFolderError, match=r"smoothing\.toml is damaged"):
        read_smoothing(tmp_path)


def test_a_width_without_a_kind_and_smoothing_of_clips_are_refused(labelled, labelled_cache, tmp_path):
    with pytest.raises(TrainSettingsError, match=r"smooth_rows \(5\)"):
        resolve_settings(smooth_rows=5)
    with pytest.raises(TrainSettingsError, match="unknown smooth 'meen'; did you mean 'mean'"):
        resolve_settings(smooth="meen")
    for option in ({"smooth": "mean"}, {"missing": "nearest"}):
        with pytest.raises(TrainSettingsError, match="missing and smooth are for labels per frame"):
            emi.train_head(labelled_cache, labelled / "train.csv", labelled / "valid.csv", tmp_path / "run", **option)
