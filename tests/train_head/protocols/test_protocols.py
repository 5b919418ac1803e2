"""Several runs as one: seeds, folds, training on all clips; what they write, and that they go on where they stopped."""

import csv
import json
import signal
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.model_selection import KFold
from warm_python import python

import emi
from train_head.data.label_format import label_format
from train_head.data.labels import read_labels
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.evaluation.baselines import training_mean
from train_head.evaluation.intervals import bootstrap
from train_head.protocols import train as train_protocol
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.load import Ensemble, load_head
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import resolve_settings
from train_head.validation import Validation

QUICK = {"hidden": 4, "layers": 1, "epochs": 2, "lr": 3e-3, "precision": "fp32"}
MEASURED = ("README.md", "metrics.jsonl", "last.pt")
"""Files of a single run that hold times."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


@pytest.fixture(scope="module")
def grouped(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled clips with a column Who: four clips in a row are one speaker's, and the splits share none."""
    root = tmp_path_factory.mktemp("grouped")
    for name in ("train", "valid"):
        header, *rows = list(csv.reader((labelled / f"{name}.csv").read_text().splitlines()))
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[*header, "Who"], *([*row, f"s{int(row[0]) // 4}"] for row in rows)])
    (root / "features.zarr").symlink_to(labelled_cache)
    return root


def train(root: Path, out: Path, **settings):
    return emi.train_head(root / "features.zarr", root / "train.csv", root / "valid.csv", out, **(QUICK | settings))


def predictions(path: Path) -> np.ndarray:
    return read_labels(path, check_range=False).values


def contents(folder: Path) -> dict[str, bytes]:
    """All files but for what is measured, with the folder's own place left out of them."""
    files = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    top = {folder / name for name in MEASURED}
    return {
        str(name): path.read_bytes().replace(str(folder).encode(), b"OUT")
        for name, path in files.items()
        if path.name not in MEASURED or (path in top and (folder / "summary.json").exists())
    }


def test_seeds_are_the_runs_one_would_train_one_by_one(labelled, labelled_cache, tmp_path):
    result = train(labelled, tmp_path / "many", seeds=2, seed=5)
    for i in range(2):
        train(labelled, tmp_path / f"one-{i}", seed=5 + i)
        for name in ("predictions_valid.csv", "best.safetensors"):
            assert (tmp_path / "many" / f"seed-{i}" / name).read_bytes() == (tmp_path / f"one-{i}" / name).read_bytes()
    assert result.members == ("seed-0", "seed-1")


def test_the_common_prediction_is_the_mean_of_the_members_and_so_is_the_loaded_model(
    labelled, labelled_cache, tmp_path
):
    out = tmp_path / "run"
    result = train(labelled, out, seeds=3, test=labelled / "valid.csv")
    for split in ("valid", "test"):
        members = [predictions(out / f"seed-{i}" / f"predictions_{split}.csv") for i in range(3)]
        np.testing.assert_allclose(predictions(out / f"predictions_{split}.csv"), np.mean(members, 0), rtol=1e-6)
    head = load_head(out)
    assert isinstance(head.head, Ensemble)
    store = emi.open_cache(labelled_cache)
    labels = read_labels(labelled / "valid.csv")
    found = np.stack([head.predict(store[clip]) for clip in labels.ids])
    np.testing.assert_allclose(found, predictions(out / "predictions_valid.csv"), atol=1e-6)
    expected = [np.corrcoef(found[:, k], labels.values[:, k])[0, 1] for k in range(2)]
    np.testing.assert_allclose(result.report.pearson, expected, atol=1e-5)


def test_media_are_predicted_by_the_mean_of_the_seeds(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run", seeds=2)
    (record,) = emi.load(tmp_path / "run").predict(labelled / "audio" / "00030.wav")
    row = read_labels(tmp_path / "run" / "predictions_valid.csv", check_range=False)
    expected = row.values[row.ids.index("00030")]
    np.testing.assert_allclose([record["Joy"], record["Calm"]], expected, atol=1e-5)


def test_the_summary_has_each_seed_the_spread_and_the_interval_of_the_mean(labelled, labelled_cache, tmp_path):
    out = tmp_path / "run"
    train(labelled, out, seeds=3)
    summary = json.loads((out / "summary.json").read_text())
    scores = [member["valid"]["mean_pearson"] for member in summary["members"]]
    for i, score in enumerate(scores):
        records = [json.loads(line) for line in (out / f"seed-{i}" / "metrics.jsonl").read_text().splitlines()]
        assert score == pytest.approx(max(r["valid_mean_pearson"] for r in records), abs=1e-9)
    assert summary["valid"]["mean"] == pytest.approx(np.mean(scores))
    assert summary["valid"]["std"] == pytest.approx(np.std(scores, ddof=1))
    joy = [member["valid"]["pearson"]["Joy"] for member in summary["members"]]
    assert summary["valid"]["per_target"]["Joy"]["mean"] == pytest.approx(np.mean(joy))
    labels = read_labels(labelled / "valid.csv")
    interval = bootstrap(predictions(out / "predictions_valid.csv"), labels.values, labels.names)
    assert summary["valid"]["intervals"] == interval.to_dict()
    text = (out / "README.md").read_text()
    assert f"{summary['valid']['mean']:.3f}" in text
    assert "seed-2" in text


def test_the_table_of_seeds_names_every_mean_and_shows_the_baselines(labelled, labelled_cache, tmp_path):
    result = train(labelled, tmp_path / "run", seeds=2)
    firsts = [line.split("  ")[0] for line in result.table().splitlines()]
    means = ["mean over seeds", "mean over targets", "mean of the training labels"]
    assert [first for first in firsts if first.startswith("mean")] == means
    train_labels, valid = (read_labels(labelled / f"{name}.csv").values.astype(float) for name in ("train", "valid"))
    wanted = np.abs(train_labels.mean(0) - valid).mean()
    assert [np.mean(mae) for mae in result.report.baselines.values()] == pytest.approx([wanted, valid.mean()])
    assert result.to_dict()["valid"]["together"]["baselines"]["all zeros"]["mean_mae"] == pytest.approx(valid.mean())


def test_finished_seeds_are_left_and_missing_ones_added(labelled, labelled_cache, tmp_path):
    assert not train(labelled, tmp_path / "grown", seeds=1).nothing_to_do
    again = train(labelled, tmp_path / "grown", seeds=1)
    assert (again.nothing_to_do, again.epochs_trained) == (True, 0)
    assert again.valid.std is None
    more = train(labelled, tmp_path / "grown", seeds=3)
    assert (more.nothing_to_do, more.epochs_trained) == (False, 4)
    train(labelled, tmp_path / "whole", seeds=3)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    with pytest.raises(RunFolderError, match="holds 3 seeds already, got 2"):
        train(labelled, tmp_path / "grown", seeds=2)


KILLED = """
import os, signal, sys, emi
from pathlib import Path
from train_head.reports import figures
from train_head.runs import run_folder
calls, real = 0, run_folder.{function}
def die(*arguments):
    global calls
    calls += 1
    if calls == {at}: os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments)
run_folder.{function} = die
figures.draw_run = lambda *_: None
root = Path(sys.argv[1])
emi.train_head(root / "features.zarr", root / "train.csv", root / "valid.csv", sys.argv[2], **{settings})
"""


@pytest.mark.parametrize(
    ("settings", "function", "at"),
    [
        ({"seeds": 2, "train_on_all": True}, "save_state", 3),
        pytest.param({"seeds": 2, "train_on_all": True}, "save_state", 5, marks=pytest.mark.slow),
        pytest.param({"folds": 2}, "save_state", 3, marks=pytest.mark.slow),
        ({"folds": 2}, "write_atomically", 2),
    ],
)
def test_a_killed_protocol_goes_on_to_the_same_files(grouped, tmp_path, settings, function, at):
    settings = settings | {"group_by": "Who"}
    program = KILLED.format(function=function, at=at, settings=QUICK | settings)
    command = [python(), "-c", program, str(grouped), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        train(grouped, tmp_path / name, **settings)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_folds_share_no_group_and_predict_every_clip_once(grouped, tmp_path):
    out = tmp_path / "run"
    result = train(grouped, out, folds=4, group_by="Who")
    pooled = read_labels(out / "labels_folds.csv", label_format(group_by="Who"))
    assert pooled.ids == tuple(f"{i:05d}" for i in range(40))
    fold = {row["Filename"]: int(row["fold"]) for row in csv.DictReader((out / "folds.csv").read_text().splitlines())}
    of_group = {(group, fold[name]) for name, group in zip(pooled.filenames, pooled.groups, strict=True)}
    assert len(of_group) == len(set(pooled.groups)) == 10
    assert set(fold.values()) == {0, 1, 2, 3}
    seen: Counter[str] = Counter()
    everything = read_labels(out / "predictions_folds.csv", check_range=False)
    at = dict(zip(everything.ids, everything.values, strict=True))
    for i in range(4):
        part = read_labels(out / f"fold-{i}" / "predictions_valid.csv", check_range=False)
        seen.update(part.ids)
        assert {fold[name] for name in part.filenames} == {i}
        for clip, row in zip(part.ids, part.values, strict=True):
            np.testing.assert_array_equal(row, at[clip])
    assert set(seen) == set(pooled.ids)
    assert set(seen.values()) == {1}
    means = np.array([pooled.values[[f != fold[n] for f in fold.values()]].mean(0) for n in pooled.filenames])
    assert np.mean(result.report.baselines["mean of the training labels"]) == pytest.approx(
        np.abs(means - pooled.values).mean(), abs=1e-6
    )
    for place in (out, out / "fold-1"):
        scored = pooled if place == out else pooled.take([i for i, n in enumerate(pooled.filenames) if fold[n] == 1])
        known, why_not = training_mean(place / "predictions_folds.csv", scored)
        rows = [pooled.filenames.index(name) for name in scored.filenames]
        np.testing.assert_allclose(known, means[rows], atol=1e-6)
        assert why_not == ""
    assert result.table().count("mean over folds") == 1
    expected = bootstrap(everything.values, pooled.values, pooled.names, groups=pooled.groups)
    assert result.valid.intervals == expected
    assert result.valid.intervals.groups == 10


def test_a_fold_is_the_run_on_the_other_folds(grouped, tmp_path):
    out = tmp_path / "run"
    train(grouped, out, folds=2, group_by="Who")
    rows = list(csv.reader((out / "labels_folds.csv").read_text().splitlines()))
    fold = {row["Filename"]: row["fold"] for row in csv.DictReader((out / "folds.csv").read_text().splitlines())}
    for name, inside in (("train", False), ("valid", True)):
        part = [row[:3] for row in rows[1:] if (fold[row[0]] == "1") == inside]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([rows[0][:3], *part])
    (tmp_path / "features.zarr").symlink_to(grouped / "features.zarr")
    train(tmp_path, tmp_path / "one")
    for name in ("predictions_valid.csv", "best.safetensors"):
        assert (out / "fold-1" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_folds_without_groups_are_a_seeded_kfold_of_train_alone_and_say_so(labelled, labelled_cache, tmp_path):
    out = tmp_path / "run"
    result = emi.train_head(labelled_cache, labelled / "train.csv", out=out, folds=3, **(QUICK | {"seed": 4}))
    fold = [int(row["fold"]) for row in csv.DictReader((out / "folds.csv").read_text().splitlines())]
    expected = KFold(3, shuffle=True, random_state=4).split(np.zeros(28))
    for i, (_, rows) in enumerate(expected):
        assert [k for k, f in enumerate(fold) if f == i] == rows.tolist()
    text = (out / "README.md").read_text()
    assert "speakers may be on both sides" in text
    assert "best epoch was chosen on the fold itself" in text
    assert len(predictions(out / "predictions_folds.csv")) == result.report.clips == 28


def test_with_a_fixed_number_of_epochs_no_fold_chooses_its_own(labelled, labelled_cache, tmp_path):
    out = tmp_path / "run"
    result = train(labelled, out, folds=2, epochs=4, stop_after=3)
    assert result.best_epochs == (3, 3)
    assert "no fold chose its own" in (out / "README.md").read_text()
    records = [json.loads(line) for line in (out / "fold-0" / "metrics.jsonl").read_text().splitlines()]
    assert [record["valid_mean_pearson"] for record in records] == [None] * 3


def test_stopping_after_some_epochs_takes_the_first_steps_of_the_whole_run(labelled, labelled_cache, tmp_path):
    short = train(labelled, tmp_path / "short", epochs=4, stop_after=2)
    whole = train(labelled, tmp_path / "whole", epochs=4)
    assert len(short.history) == 2
    for one, other in zip(short.history, whole.history[:2], strict=True):
        for key in ("train_loss", "lr", "valid_mean_pearson", "best"):
            assert one[key] == other[key]
    with pytest.raises(TrainSettingsError, match="stop_after must not be above epochs"):
        resolve_settings(epochs=2, stop_after=3)


def test_training_on_all_repeats_the_best_epoch_count_on_both_splits(labelled, labelled_cache, tmp_path):
    out = tmp_path / "run"
    best = train(labelled, out, epochs=4, train_on_all=True, test=labelled / "valid.csv").best_epoch
    both = tmp_path / "both.csv"
    both.write_text(
        (labelled / "train.csv").read_text()
        + "".join((labelled / "valid.csv").read_text().splitlines(keepends=True)[1:])
    )
    arguments = (labelled_cache, both, labelled / "valid.csv", tmp_path / "one")
    emi.train_head(*arguments, **(QUICK | {"epochs": 4, "stop_after": best}))
    a, b = (torch.load(p / "last.pt", weights_only=True) for p in (out / "all", tmp_path / "one"))
    assert all(torch.equal(a["predictor"][key], b["predictor"][key]) for key in b["predictor"])
    kept = load_file(out / "all" / "best.safetensors")
    assert all(torch.equal(kept[key], a["predictor"][key]) for key in kept)
    config = tomllib.loads((out / "all" / "config.toml").read_text())
    assert (config["epochs"], config["stop_after"]) == (4, best)
    assert "There is no validation" in (out / "all" / "README.md").read_text()
    assert (out / "all" / "predictions_test.csv").is_file()
    assert not (out / "all" / "predictions_valid.csv").exists()


def test_a_finished_run_is_taken_for_training_on_all(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").stat().st_mtime_ns
    again = run(labelled, tmp_path / "run", on_all=True)
    assert again.result.resumed_at == 2
    assert not again.nothing_to_do
    assert (tmp_path / "run" / "last.pt").stat().st_mtime_ns == before
    assert run(labelled, tmp_path / "run", on_all=True).nothing_to_do


def test_with_seeds_each_is_trained_on_all_and_their_mean_is_one_model(labelled, labelled_cache, tmp_path):
    out = tmp_path / "run"
    names, reporter = [], Reporter()
    reporter.run_started = lambda name, *_: names.append(name)
    outcome = run(labelled, out, reporter, seeds=2, on_all=True)
    assert names == ["seed-0", "seed-1", "seed-0/all", "seed-1/all"]
    assert outcome.on_all.epochs == outcome.result.best_epochs
    clip = emi.open_cache(labelled_cache)["00003"]
    members = [load_head(out / f"seed-{i}" / "all").predict(clip) for i in range(2)]
    np.testing.assert_allclose(load_head(out / "all").predict(clip), np.mean(members, 0), atol=1e-6)


def run(root: Path, out: Path, reporter: Reporter = SILENT, **validation):
    inputs = gather_inputs(root / "features.zarr", LabelFiles.named(root / "train.csv", root / "valid.csv"))
    return train_protocol(inputs, out, resolve_settings(**QUICK), Validation(**validation), reporter)


def test_groups_without_folds_keep_the_splits_apart_and_are_recorded(grouped, tmp_path):
    result = train(grouped, tmp_path / "run", group_by="Who", seeds=1)
    assert result.valid.intervals.groups == 3
    config = tomllib.loads((tmp_path / "run" / "seed-0" / "config.toml").read_text())
    assert config["data"]["group_by"] == "Who"
    assert config["data"]["targets"] == ["Joy", "Calm"]
    rows = (grouped / "valid.csv").read_text().replace(",s9", ",s0")
    (tmp_path / "valid.csv").write_text(rows)
    for more in ({}, {"seeds": 2}, {"train_on_all": True}):
        files = (grouped / "features.zarr", grouped / "train.csv", tmp_path / "valid.csv")
        with pytest.raises(LabelError, match=r"1 of the 3 validation groups are in the training split too"):
            emi.train_head(*files, tmp_path / "other", group_by="Who", **QUICK, **more)
    assert not (tmp_path / "other").exists()


def test_runs_are_compared_by_the_groups_they_record(grouped, tmp_path):
    from train_head.evaluation.compare import compare

    for seed in (0, 7):
        train(grouped, tmp_path / f"run-{seed}", group_by="Who", seeds=1, seed=seed)
    assert compare(tmp_path / "run-0", tmp_path / "run-7", resamples=50).difference.groups == 3


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"seeds": 2, "folds": 2}, "--seeds and --folds do not go together"),
        ({"folds": 2, "train_on_all": True}, "leave out --folds or --train-on-all"),
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"folds": 1}, "at least 2 folds, got 1"),
        ({"folds": 41}, "41 folds need as many clips, and there are 40"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(labelled, labelled_cache, tmp_path, protocol, message):
    with pytest.raises((TrainSettingsError, LabelError), match=message):
        train(labelled, tmp_path / "run", **protocol)
    assert not (tmp_path / "run").exists()


def test_a_validation_split_is_needed_but_for_folds(labelled, labelled_cache, tmp_path):
    with pytest.raises(TrainSettingsError, match="there is no validation split; give --valid CSV"):
        emi.train_head(labelled_cache, labelled / "train.csv", out=tmp_path / "run", **QUICK)


@pytest.mark.parametrize("protocol", [{"folds": 2}, {"train_on_all": True}])
def test_a_clip_in_both_label_files_is_refused_where_they_are_pooled(labelled, labelled_cache, tmp_path, protocol):
    files = (labelled_cache, labelled / "train.csv", labelled / "train.csv")
    with pytest.raises(LabelError, match=r"28 clips are in .* \(first: 00000, 00001"):
        emi.train_head(*files, tmp_path / "run", **QUICK, **protocol)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_kind_is_refused(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run", epochs=1)
    with pytest.raises(RunFolderError, match="there 'one run', now 'runs of several --seeds'"):
        train(labelled, tmp_path / "run", epochs=1, seeds=2)


def test_an_ensemble_may_list_any_runs_on_the_same_features_and_targets(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "a")
    train(labelled, tmp_path / "b", head="mean", hidden=None, layers=None)
    both = tmp_path / "both"
    both.mkdir()
    (both / "ensemble.toml").write_text('members = ["../a", "../b"]')
    clip = emi.open_cache(labelled_cache)["00001"]
    members = [load_head(tmp_path / name).predict(clip) for name in "ab"]
    np.testing.assert_allclose(load_head(both).predict(clip), np.mean(members, 0), atol=1e-6)
    (both / "ensemble.toml").write_text("members = []")
    with pytest.raises(RunFolderError, match="must list the folders of its runs"):
        load_head(both)
    config = tmp_path / "b" / "config.toml"
    config.write_text(config.read_text().replace('"Calm"', '"Sad"'))
    (both / "ensemble.toml").write_text('members = ["../a", "../b"]')
    with pytest.raises(RunFolderError, match=r"\.\./a and \.\./b, whose targets differ"):
        load_head(both)
