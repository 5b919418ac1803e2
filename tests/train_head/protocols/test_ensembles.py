"""Finished runs as one: any heads and features, weighted, judged, moved, and what cannot be averaged."""

import csv
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import emi
from cache.derive.derived import derive
from train_head.data.labels import read_labels
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.evaluation.compare import compare
from train_head.evaluation.intervals import bootstrap
from train_head.evaluation.metrics import evaluate
from train_head.evaluation.scoring import read_pair
from train_head.runs.load import load_head

QUICK = {"hidden": 4, "layers": 1, "epochs": 1, "lr": 3e-3, "precision": "fp32"}


@pytest.fixture(scope="module")
def runs(labelled, labelled_cache, tmp_path_factory) -> Path:
    """lstm, gru (two seeds) on the features; mean on pooled ones; folds and all on all clips."""
    root = tmp_path_factory.mktemp("runs")
    derive(labelled_cache, root / "pooled.zarr", pool=2)
    shutil.copy(labelled / "train.csv", root / "train.csv")
    shutil.copy(labelled / "valid.csv", root / "valid.csv")
    splits = (root / "train.csv", root / "valid.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
        emi.train_head(labelled_cache, *splits, root / "lstm", **QUICK, test=splits[1])
        emi.train_head(labelled_cache, *splits, root / "gru", **QUICK, head="gru", seeds=2, train_on_all=True)
        emi.train_head(root / "pooled.zarr", *splits, root / "mean", head="mean", epochs=1, test=splits[1])
        emi.train_head(labelled_cache, *splits, root / "folds", head="mean", epochs=1, folds=2)
        emi.train_head(labelled_cache, *splits, root / "folds-3", head="mean", epochs=1, folds=3)
    return root


def predicted(folder: Path, split: str = "valid") -> np.ndarray:
    return read_labels(folder / f"predictions_{split}.csv", check_range=False).values


def test_runs_of_two_heads_are_averaged_and_judged(runs, labelled, tmp_path):
    found = emi.ensemble([runs / "lstm", runs / "gru"], tmp_path / "both")
    mean = (predicted(runs / "lstm").astype(float) + predicted(runs / "gru")) / 2
    np.testing.assert_allclose(predicted(tmp_path / "both"), mean, atol=1e-6)
    assert not (tmp_path / "both" / "predictions_test.csv").exists()  # one of them has none
    scored = found.scored["valid"]
    for run, report in zip(("lstm", "gru"), scored.members, strict=True):
        values, truth = read_pair(runs / run / "predictions_valid.csv", labelled / "valid.csv")
        expected = evaluate(values, truth.values, truth.names)
        assert report.pearson == pytest.approx(expected.pearson, abs=1e-6)
    truth = read_labels(labelled / "valid.csv")
    assert scored.intervals.to_dict() == bootstrap(predicted(tmp_path / "both"), truth.values, truth.names).to_dict()
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert [member["weight"] for member in summary["members"]] == [0.5, 0.5]
    card = (tmp_path / "both" / "README.md").read_text()
    for text in ("head `lstm` on `silero`", "head `gru` on `silero`", f"{scored.report.mean_pearson:.3f}", "MIT"):
        assert text in card
    assert emi.ensemble([runs / "lstm", runs / "gru"], tmp_path / "both").nothing_to_do


@pytest.mark.parametrize("members", [("lstm", "gru"), ("lstm", "mean"), ("gru", "mean", "lstm")])
def test_media_are_predicted_as_the_clips_of_the_cache_were(runs, labelled, tmp_path, members):
    weights = [3.0, 1.0, 2.0][: len(members)]
    emi.ensemble([runs / name for name in members], tmp_path / "e", weights=weights)
    media = [labelled / "audio" / f"{clip:05d}.wav" for clip in (30, 31)]
    calls: list[tuple[int, int]] = []
    model = emi.load(tmp_path / "e")
    records = model.predict(media)
    rows = read_labels(tmp_path / "e" / "predictions_valid.csv", check_range=False)
    expected = rows.values[[rows.ids.index("00030"), rows.ids.index("00031")]]
    np.testing.assert_allclose([[r["Joy"], r["Calm"]] for r in records], expected, atol=1e-5)
    each = np.stack([predicted(runs / name) for name in members]).astype(float)
    np.testing.assert_allclose(rows.values, np.average(each, 0, weights), atol=1e-6)
    from emi.prediction import list_sources

    list(model.iterate_sources(list_sources(media), lambda done, total, _: calls.append((done, total))))
    assert calls == [(1, 2), (2, 2)]


def test_a_clip_that_one_member_cannot_read_is_a_failure_and_no_mean_of_the_others(runs, labelled, tmp_path):
    emi.ensemble([runs / "lstm", runs / "mean"], tmp_path / "e")
    (tmp_path / "bad.wav").write_bytes(b"")
    results = list(emi.load(tmp_path / "e").iterate([labelled / "audio" / "00030.wav", tmp_path / "bad.wav"]))
    assert sorted(getattr(result, "reason", "read") for result in results) == ["is empty (0 bytes)", "read"]


def test_compare_and_a_further_ensemble_take_the_folder(runs, tmp_path):
    emi.ensemble([runs / "lstm", runs / "mean"], tmp_path / "inner")
    assert compare(tmp_path / "inner", runs / "gru").difference.clips == 12
    emi.ensemble([tmp_path / "inner", runs / "gru"], tmp_path / "outer")
    mean = (predicted(tmp_path / "inner").astype(float) + predicted(runs / "gru")) / 2
    np.testing.assert_allclose(predicted(tmp_path / "outer"), mean, atol=1e-6)
    with pytest.raises(RunFolderError, match="whose features differ"):
        load_head(tmp_path / "outer")


def test_folds_are_averaged_clip_by_clip_and_runs_on_all_clips_without_a_judgement(runs, tmp_path):
    found = emi.ensemble([runs / "folds", runs / "folds-3"], tmp_path / "folds")
    assert found.scored["folds"].report.clips == 40
    assert (tmp_path / "folds" / "labels_folds.csv").read_bytes() == (runs / "folds" / "labels_folds.csv").read_bytes()
    both = emi.ensemble([runs / "gru" / "seed-0" / "all", runs / "gru" / "seed-1" / "all"], tmp_path / "all")
    assert not both.scored
    assert "There is no validation" in both.table()
    with pytest.raises(LabelError, match=r"lstm has predictions_valid\.csv, and .*folds has none"):
        emi.ensemble([runs / "lstm", runs / "folds"], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_members_that_moved_are_named_and_an_ensemble_beside_them_moves_with_them(runs, labelled, tmp_path):
    shutil.copytree(runs / "lstm", tmp_path / "here" / "lstm")
    shutil.copytree(runs / "mean", tmp_path / "here" / "mean")
    emi.ensemble([tmp_path / "here" / "lstm", tmp_path / "here" / "mean"], tmp_path / "here" / "e")
    (tmp_path / "here").rename(tmp_path / "there")
    assert emi.load(tmp_path / "there" / "e").predict(labelled / "audio" / "00030.wav")
    (tmp_path / "there" / "mean").rename(tmp_path / "there" / "gone")
    with pytest.raises(RunFolderError, match=r"lists \.\./mean, and there is no run at .*there/mean; put it back"):
        emi.load(tmp_path / "there" / "e")
    toml = tmp_path / "there" / "e" / "ensemble.toml"
    toml.write_text(toml.read_text().replace("../mean", str(tmp_path / "there" / "gone")))
    assert emi.load(tmp_path / "there" / "e").predict(labelled / "audio" / "00030.wav")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('members = ["."]', "lists itself"),
        ('members = ["lstm", "mean"]\nweights = [1]', "give each of its 2 runs a weight above 0"),
        ('members = ["lstm", "mean"]\nweights = [1, -1]', "a weight above 0"),
        ("members = [", "is not valid TOML"),
    ],
)
def test_a_list_that_was_written_wrongly_is_refused(runs, tmp_path, text, message):
    (tmp_path / "ensemble.toml").write_text(text)
    for name in ("lstm", "mean"):
        (tmp_path / name).symlink_to(runs / name)
    with pytest.raises(RunFolderError, match=message):
        emi.load(tmp_path)


def test_one_place_of_a_backbone_does_not_do_for_several(runs, tmp_path):
    emi.ensemble([runs / "lstm", runs / "mean"], tmp_path / "e")
    with pytest.raises(RunFolderError, match="predicts with 2 backbones, and --backbone says where one is"):
        emi.load(tmp_path / "e", backbone="silero")


def changed(run: Path, place: Path, old: str, new: str) -> Path:
    """A copy of a run with another word in its config.toml."""
    shutil.copytree(run, place)
    (place / "config.toml").write_text((place / "config.toml").read_text().replace(old, new))
    return place


def test_runs_that_cannot_be_averaged_are_refused_by_what_differs(runs, tmp_path):
    lstm, out = runs / "lstm", tmp_path / "e"
    other = changed(lstm, tmp_path / "targets", '"Calm"', '"Sad"')
    with pytest.raises(RunFolderError, match=r"predicts Joy, Calm, and .*targets Joy, Sad"):
        emi.ensemble([lstm, other], out)
    scaled = changed(lstm, tmp_path / "scale", "label_scale = 1.0", "label_scale = 100.0")
    with pytest.raises(RunFolderError, match=r"label_scale 1\.0, and .*scale with 100\.0"):
        emi.ensemble([lstm, scaled], out)
    fewer = changed(lstm, tmp_path / "fewer", "", "")
    path = fewer / "predictions_valid.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    with pytest.raises(LabelError, match=r"fewer.* lacks 2 of the 12 clips of .*lstm.* \(first: 00038, 00039\)"):
        emi.ensemble([lstm, fewer], out)
    digest = tomllib.loads((lstm / "config.toml").read_text())["data"]["valid_sha256"]
    labels = changed(lstm, tmp_path / "labels", digest, "0" * 64)
    with pytest.raises(LabelError, match=r"made with different valid labels .* --labels CSV"):
        emi.ensemble([lstm, labels], out)
    unfinished = changed(lstm, tmp_path / "unfinished", "", "")
    (unfinished / "best.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"has no best\.safetensors yet"):
        emi.ensemble([lstm, unfinished], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["lstm"], None, "needs two runs or more, got 1"),
        (["lstm", "gru", "lstm"], None, "is given twice"),
        (["lstm", "gru"], [1.0], "takes one number per run: 2, got 1"),
        (["lstm", "gru"], [1.0, 0.0], "must be above 0, got 1, 0"),
    ],
)
def test_wrong_arguments_are_refused(runs, tmp_path, names, weights, message):
    with pytest.raises(TrainSettingsError, match=message):
        emi.ensemble([runs / name for name in names], tmp_path / "e", weights=weights)
    with pytest.raises(TrainSettingsError, match="is one of the runs"):
        emi.ensemble([runs / "lstm", runs / "gru"], runs / "lstm")


def test_labels_that_are_gone_may_be_named(runs, labelled, tmp_path):
    copies = [changed(runs / name, tmp_path / name, str(runs), "/gone") for name in ("lstm", "gru")]
    with pytest.raises(LabelError, match=r"/gone/valid\.csv: the file is gone; name it with --labels CSV"):
        emi.ensemble(copies, tmp_path / "e")
    with (tmp_path / "more.csv").open("w", newline="") as file:  # another column, other clips, another order
        rows = list(csv.reader((labelled / "valid.csv").read_text().splitlines()))
        csv.writer(file).writerows([[*rows[0], "Extra"], ["999", 0, 0, 0], *([*row, 0] for row in rows[:0:-1])])
    found = emi.ensemble(copies, tmp_path / "e", labels=tmp_path / "more.csv")
    values, truth = read_pair(tmp_path / "e" / "predictions_valid.csv", labelled / "valid.csv")
    expected = evaluate(values, truth.values, truth.names)
    assert found.scored["valid"].report.pearson == pytest.approx(expected.pearson, abs=1e-6)


def test_another_ensemble_in_the_folder_is_refused(runs, tmp_path):
    emi.ensemble([runs / "lstm", runs / "gru"], tmp_path / "e")
    with pytest.raises(RunFolderError, match=r"--weights \(there \[0\.5, 0\.5\], now \[0\.75, 0\.25\]\)"):
        emi.ensemble([runs / "lstm", runs / "gru"], tmp_path / "e", weights=[3, 1])
    with pytest.raises(RunFolderError, match="what is trained"):
        emi.ensemble([runs / "mean", runs / "gru"], runs / "lstm" / ".." / "folds")
