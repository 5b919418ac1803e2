"""Seeds, folds, training on all clips, ablations, ensembles and comparisons with labels per frame."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from train_head.data.frame_labels import read_frame_labels
from train_head.data.label_format import LabelFormat
from train_head.data.predictions import prediction_file
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.evaluation.baselines import training_mean
from train_head.evaluation.compare import compare
from train_head.evaluation.labelled import intervals_of
from train_head.evaluation.metrics import concordance
from train_head.evaluation.scoring import read_pair
from train_head.protocols import Row, ablate, rows_settings
from train_head.protocols import train as run
from train_head.protocols.pool import pool
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.load import load_heads
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

CLIPS = [f"{who}-{i}" for who in "abcde" for i in range(2)]
TRAIN, VALID, TEST = CLIPS[:4] + CLIPS[6:8], CLIPS[4:6], CLIPS[8:]  # pooled, they are not in the order of their names
NAMES = ("valence", "arousal")
QUICK = {"head": "gru", "hidden": 4, "epochs": 2, "lr": 1e-2, "loss": "ccc", "batch_size": 3}
QUICK |= {"precision": "fp32", "device": "cpu", "label_range": (-1, 1), "label_fps": 10.0}
FORM, SPEAKER = LabelFormat(range=(-1, 1)), r"^(\w)-"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
    monkeypatch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)


@pytest.fixture(scope="module", params=["folder", "table"])
def data(request, tmp_path_factory) -> Path:
    """A cache, and labels of every frame in one of the two layouts; rows 3 and 4 of a clip have none."""
    root, rng = tmp_path_factory.mktemp(request.param), np.random.default_rng(0)
    header = Header(fingerprint={"backbone": "made", "dtype": "float32"}, dim=3, hop_seconds=0.1)
    with CacheWriter(root / "features.zarr", header) as writer:
        for n, clip in enumerate(CLIPS):
            signal = np.tanh(np.cumsum(rng.normal(size=(20 + n, 2)), axis=0) / 4)
            frames = np.column_stack([signal, np.ones(len(signal))]) + rng.normal(size=(len(signal), 3)) / 5
            writer.add(Clip(clip, frames.astype(np.float32), None, None, len(frames) / 10))
            for split, part in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
                if clip in part:
                    write_clip(root, split, clip, signal, as_folder=request.param == "folder")
    return root


def write_clip(root: Path, split: str, clip: str, signal: np.ndarray, *, as_folder: bool) -> None:
    rows = [f"{v:.6f},{a:.6f}" for v, a in signal]
    if as_folder:
        rows[3:5] = ["-5,-5", "-5,0.25"]
        (root / split).mkdir(exist_ok=True)
        (root / split / f"{clip}.txt").write_text("\n".join(["valence,arousal", *rows, ""]))
        return
    rows[3:5] = [",", ","]
    place = root / f"{split}.csv"
    before = place.read_text() if place.exists() else "Filename,Time,valence,arousal\n"
    place.write_text(before + "".join(f"{clip},{i / 10:.1f},{row}\n" for i, row in enumerate(rows)))


def labels_of(root: Path, split: str) -> Path:
    return root / split if (root / split).is_dir() else root / f"{split}.csv"


def train(root: Path, out: Path, **settings):
    splits = (labels_of(root, "train"), labels_of(root, "valid"))
    return emi.train_head(root / "features.zarr", *splits, out, **(QUICK | settings))


def read(place: Path, *, predictions: bool = True):
    return read_frame_labels(place, FORM, check_range=not predictions)


def stored(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder / f"{name}.csv"


def test_folds_predict_every_row_once_by_a_run_that_did_not_train_on_its_clip(data, tmp_path):
    out = tmp_path / "run"
    result = train(data, out, folds=4, group_by=SPEAKER, test=labels_of(data, "test"))
    labels, everything = read(stored(out, "labels_folds"), predictions=False), read(stored(out, "predictions_folds"))
    assert stored(out, "labels_folds").is_dir() == labels_of(data, "train").is_dir()
    assert set(labels.ids) == set(TRAIN + VALID)
    assert (everything.ids, everything.offsets.tolist()) == (labels.ids, labels.offsets.tolist())
    fold = {row["Filename"]: int(row["fold"]) for row in csv.DictReader((out / "folds.csv").read_text().splitlines())}
    assert len({(clip[0], number) for clip, number in fold.items()}) == len({clip[0] for clip in fold}) == 4
    for number in range(4):
        part = read(stored(out / f"fold-{number}", "predictions_valid"))
        assert {fold[clip] for clip in part.ids} == {number}
        for i, clip in enumerate(part.ids):
            at = everything.rows_of([everything.ids.index(clip)])
            np.testing.assert_array_equal(part.values[part.rows_of([i])], everything.values[at])
    known = ~np.isnan(labels.values).any(axis=1)
    assert (~known).sum() == 2 * len(labels)
    for k, found in enumerate(result.report.concordance):
        assert found == pytest.approx(concordance(everything.values[known, k], labels.values[known, k]), abs=1e-9)
    assert result.valid.metric == "ccc"
    assert result.valid.mean == pytest.approx(np.mean([r.mean_concordance for r in result.valid.members]))
    assert (result.valid.intervals.groups, result.valid.intervals.units) == (4, "groups")
    means = {f: labels.values[np.repeat([fold[c] != f for c in labels.ids], labels.lengths)] for f in range(4)}
    expected = np.concatenate(
        [np.tile(np.nanmean(means[fold[c]], 0), (n, 1)) for c, n in zip(labels.ids, labels.lengths, strict=True)]
    )
    for place, scored in (
        (out, labels),
        (out / "fold-1", labels.take([i for i, c in enumerate(labels.ids) if fold[c] == 1])),
    ):
        baseline, why_not = training_mean(stored(place, "predictions_folds"), scored)
        rows = labels.rows_of([labels.ids.index(clip) for clip in scored.ids])
        np.testing.assert_allclose(baseline, expected[rows], atol=1e-6)
        assert why_not == ""
    mean = np.mean([read(stored(out / f"fold-{i}", "predictions_test")).values for i in range(4)], axis=0)
    np.testing.assert_allclose(read(stored(out, "predictions_test")).values, mean, atol=1e-6)
    assert "CCC of each run" in result.table()
    assert train(data, out, folds=4, group_by=SPEAKER, test=labels_of(data, "test")).nothing_to_do


def test_labels_of_the_folds_say_what_the_label_files_say(data, tmp_path):
    train(data, tmp_path / "run", folds=2, epochs=1, targets=("arousal",))
    pooled = read(stored(tmp_path / "run", "labels_folds"), predictions=False)
    assert pooled.names == ("arousal",)
    for split in ("train", "valid"):
        labels = read_frame_labels(labels_of(data, split), LabelFormat(range=(-1, 1), targets=("arousal",)))
        for i, clip in enumerate(labels.ids):
            at = pooled.rows_of([pooled.ids.index(clip)])
            np.testing.assert_array_equal(pooled.values[at], labels.values[labels.rows_of([i])])


def test_each_clip_is_a_group_of_its_own_and_intervals_resample_clips(data, tmp_path):
    result = train(data, tmp_path / "run", folds=8, epochs=1)
    assert len(result.members) == 8
    assert (result.valid.intervals.groups, result.valid.intervals.units) == (8, "clips")
    assert "resamples of 8 clips with" in result.table()
    with pytest.raises(LabelError, match="9 folds need as many clips, and there are 8"):
        train(data, tmp_path / "more", folds=9)


def test_folds_that_are_trained_one_by_one_join_to_the_same(data, tmp_path):
    whole = train(data, tmp_path / "whole", folds=2)
    assert train(data, tmp_path / "jobs", folds=2, only_fold=1).best_epoch in (1, 2)
    joined = train(data, tmp_path / "jobs", folds=2, only_fold=0)
    assert joined.report == whole.report
    one, other = (read(stored(tmp_path / name, "predictions_folds")) for name in ("whole", "jobs"))
    np.testing.assert_array_equal(one.values, other.values)
    assert (tmp_path / "jobs" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_training_on_all_takes_both_splits_and_the_best_number_of_epochs(data, tmp_path):
    best = train(data, tmp_path / "run", train_on_all=True, test=labels_of(data, "test")).best_epoch
    settings = resolve_settings(**QUICK, stop_after=best)
    files = LabelFiles.named(labels_of(data, "train"), labels_of(data, "valid"), format=settings.label_format())
    both = pool(gather_inputs(data / "features.zarr", files))
    assert both.labels.ids == tuple(TRAIN + VALID)
    trainer = Trainer(settings, both, None, None)
    trainer.fit()
    kept = load_file(tmp_path / "run" / "all" / "best.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in trainer.predictor.state_dict().items())
    text = (tmp_path / "run" / "all" / "README.md").read_text()
    assert "of every label row from features" in text
    assert stored(tmp_path / "run" / "all", "predictions_test").exists()


def test_seeds_on_all_are_the_mean_of_theirs(data, tmp_path):
    train(data, tmp_path / "run", seeds=2, train_on_all=True, test=labels_of(data, "test"))
    parts = [read(stored(tmp_path / "run" / f"seed-{i}" / "all", "predictions_test")).values for i in range(2)]
    found = read(stored(tmp_path / "run" / "all", "predictions_test")).values
    np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-6)


def test_splits_in_two_layouts_are_not_pooled(data, tmp_path):
    other = tmp_path / "valid.csv"
    other.write_text("Filename,frame,valence,arousal\n" + "".join(f"{VALID[0]},{i},0.{i},0\n" for i in range(9)))
    with pytest.raises(LabelError, match="give both in one layout"):
        emi.train_head(data / "features.zarr", labels_of(data, "train"), other, tmp_path / "run", folds=2, **QUICK)


def test_rows_of_an_ablation_are_compared_by_their_ccc_over_clips(data, tmp_path):
    rows = rows_settings([Row("gru"), Row("tcn", {"head": "tcn", "layers": 1})], **QUICK)
    files = LabelFiles.named(labels_of(data, "train"), labels_of(data, "valid"), format=rows[0][1].label_format())
    inputs = gather_inputs(data / "features.zarr", files)
    found = ablate(inputs, tmp_path / "out", rows, 2)
    labels = inputs.splits["valid"].labels
    gru, tcn = (read(prediction_file(tmp_path / "out" / name, "valid", labels)) for name in ("gru", "tcn"))
    known = ~np.isnan(labels.values).any(axis=1)
    scores = [np.mean([concordance(p.values[known, k], labels.values[known, k]) for k in range(2)]) for p in (gru, tcn)]
    record = found.records()[1]
    assert record["ensemble"] == pytest.approx(scores[1], abs=1e-9)
    assert record["difference"] == pytest.approx(scores[1] - scores[0], abs=1e-9)
    assert record["ccc_mean"] == found.results[1].valid.mean
    assert found.differences[1].test.units == 2
    for text in (found.table(), (tmp_path / "out" / "ablation.md").read_text()):
        assert "Validation CCC" in text
        assert "sign-flip test over 2 clips" in text
    assert ablate(inputs, tmp_path / "out", rows, 2).nothing_to_do


def test_a_row_whose_head_has_no_state_per_row_is_refused_before_any_is_trained(data, tmp_path):
    rows = rows_settings([Row("gru"), Row("mean", {"head": "mean"})], **QUICK)
    files = LabelFiles.named(labels_of(data, "train"), labels_of(data, "valid"), format=rows[0][1].label_format())
    inputs = gather_inputs(data / "features.zarr", files)
    for call in (lambda: ablate(inputs, tmp_path / "out", rows, 1), lambda: run(inputs, tmp_path / "out", rows[1][1])):
        with pytest.raises(TrainSettingsError, match="the head 'mean' summarises a clip"):
            call()
        assert not (tmp_path / "out").exists()


def test_an_ablation_on_a_single_validation_clip_is_refused_before_it_is_trained(data, tmp_path):
    rows = rows_settings([Row("gru")], **QUICK)
    files = LabelFiles.named(labels_of(data, "train"), labels_of(data, "valid"), format=rows[0][1].label_format())
    inputs = gather_inputs(data / "features.zarr", files)
    valid = inputs.splits["valid"].take([0])
    splits = {**inputs.splits, "valid": valid}
    with pytest.raises(LabelError, match="labels of one clip"):
        ablate(replace(inputs, splits=splits), tmp_path / "out", rows, 1)
    assert not (tmp_path / "out").exists()
    found = intervals_of(np.zeros_like(valid.labels.values), valid.labels, None)
    assert (found.mean_low, found.low) == (None, (None, None))
    assert found.notes == ("no interval: there is one clip",)


def test_runs_of_frames_are_averaged_judged_and_compared(data, tmp_path):
    for name, options in (("gru", {}), ("tcn", {"head": "tcn", "layers": 1})):
        train(data, tmp_path / name, test=labels_of(data, "test"), **options)
    found = emi.ensemble([tmp_path / "gru", tmp_path / "tcn"], tmp_path / "both", weights=[3, 1])
    for split in ("valid", "test"):
        one, other, both = (read(stored(tmp_path / name, f"predictions_{split}")) for name in ("gru", "tcn", "both"))
        np.testing.assert_allclose(both.values, 0.75 * one.values + 0.25 * other.values, atol=1e-6)
        predicted, truth = read_pair(stored(tmp_path / "both", f"predictions_{split}"), labels_of(data, split), FORM)
        scores = [concordance(predicted[:, k], truth.values[:, k]) for k in range(2)]
        assert found.scored[split].report.concordance == pytest.approx(scores, abs=1e-6)
        assert found.scored[split].members[0].counted == "rows"
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert summary["valid"]["together"]["rows"] == len(read(stored(tmp_path / "both", "predictions_valid")).values)
    assert emi.ensemble([tmp_path / "gru", tmp_path / "tcn"], tmp_path / "both", weights=[3, 1]).nothing_to_do
    assert load_heads(tmp_path / "both")[0][0].by_frame
    comparison = compare(tmp_path / "both", tmp_path / "gru", resamples=20)
    assert comparison.difference.metric == "ccc"
    assert comparison.difference.mean["a"] == pytest.approx(found.scored["valid"].report.mean_concordance, abs=1e-6)
    files = [stored(tmp_path / name, "predictions_valid") for name in ("both", "gru")]
    given = compare(*files, labels=labels_of(data, "valid"), label_range=(-1, 1), resamples=20)
    assert given.difference == comparison.difference
    assert "2 clips with 45 rows" in comparison.table()
    mean, why_not = training_mean(files[1], read(labels_of(data, "valid"), predictions=False))
    expected = np.nanmean(read(labels_of(data, "train"), predictions=False).values, axis=0)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert why_not == ""


def test_folds_of_frames_are_averaged_and_compared_and_never_with_runs_of_clips(data, tmp_path):
    for seed in (0, 1):
        train(data, tmp_path / f"{seed}", folds=2, epochs=1, seed=seed)
    found = emi.ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
    one, other, both = (read(stored(tmp_path / name, "predictions_folds")) for name in ("0", "1", "both"))
    np.testing.assert_allclose(both.values, (one.values + other.values) / 2, atol=1e-6)
    assert found.scored["folds"].report.clips == len(both.values)
    labels = stored(tmp_path / "both", "labels_folds")
    files = [stored(tmp_path / name, "predictions_folds") for name in ("0", "both")]
    assert compare(*files, labels=labels, label_range=(-1, 1), resamples=20).compared == 8
    with pytest.raises(LabelError, match=r"for folds, compare predictions_folds(\.csv)?, with --labels labels_folds"):
        compare(tmp_path / "0", tmp_path / "1")
    for name, value in (("train", 0.25), ("valid", 0.5)):
        rows = [f"{clip},{value + i / 100},0.{i}" for i, clip in enumerate(TRAIN if name == "train" else VALID)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["Filename,valence,arousal", *rows, ""]))
    clips = QUICK | {"label_fps": 0.0, "loss": "mse"}
    emi.train_head(data / "features.zarr", tmp_path / "train.csv", tmp_path / "valid.csv", tmp_path / "clips", **clips)
    with pytest.raises(RunFolderError, match=r"predicts frames, and .* clips; they cannot be averaged"):
        emi.ensemble([tmp_path / "0", tmp_path / "clips"], tmp_path / "mixed")
