"""Ablations: the paper's rows, any rows, and each against the one before."""

import csv
from pathlib import Path

import pytest

import emi
from train_head.data.labels import read_labels
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.evaluation.intervals import paired_bootstrap
from train_head.protocols import PAPER_ROWS, Row, read_rows, rows_settings

QUICK = {"hidden": 4, "layers": 1, "epochs": 2, "lr": 3e-3, "precision": "fp32"}
TWO = (Row("A: mean", {"head": "mean"}), Row("B: LSTM", {"head": "lstm", "global_vector": False}))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


def ablate(root: Path, out: Path, **settings):
    files = (root / "features.zarr", root / "train.csv", root / "valid.csv")
    return emi.ablate(*files, out, **(QUICK | {"seeds": 2} | settings))


def test_the_papers_rows_add_one_part_each():
    settings = [own for _, own in rows_settings(PAPER_ROWS)]
    assert [own.head for own in settings] == ["mean", "lstm", "lstm", "lstm"]
    options = [(own.head_options["global_vector"], own.head_options["dropout"]) for own in settings[1:]]
    assert options == [(False, 0.0), (True, 0.0), (True, 0.1)]
    assert {(own.lr, own.epochs, own.loss) for own in settings} == {(1e-4, 30, "mse")}


def test_a_base_reaches_the_rows_that_have_the_option(tmp_path):
    (tmp_path / "base.toml").write_text("epochs = 7\n[lstm]\nhidden = 5\n")
    settings = [own for _, own in rows_settings(PAPER_ROWS, tmp_path / "base.toml", layers=1, mixup=0.2, lr=0.5)]
    assert {(own.epochs, own.lr, own.augment["mixup"]) for own in settings} == {(7, 0.5, 0.2)}
    assert [own.head_options.get("hidden") for own in settings] == [None, 5, 5, 5]
    assert [own.head_options.get("layers") for own in settings] == [None, 1, 1, 1]


def test_rows_are_seeds_of_their_settings_and_stand_against_the_row_before(labelled, labelled_cache, tmp_path):
    found = ablate(labelled, tmp_path / "run", rows=TWO)
    alone = emi.train_head(
        *(labelled / name for name in ("features.zarr", "train.csv", "valid.csv")),
        tmp_path / "alone",
        seeds=2,
        **(QUICK | {"global_vector": False}),
    )
    assert found.names == ("A: mean", "B: LSTM")
    assert found.results[1].valid == alone.valid
    labels = read_labels(labelled / "valid.csv")
    a, b = (
        read_labels(tmp_path / "run" / n / "predictions_valid.csv", check_range=False) for n in ("a-mean", "b-lstm")
    )
    assert found.differences == (None, paired_bootstrap(b.values, a.values, labels.values, labels.names))


def test_the_tables_hold_the_numbers_of_the_rows(labelled, labelled_cache, tmp_path):
    found = ablate(labelled, tmp_path / "run", rows=TWO)
    rows = list(csv.DictReader((tmp_path / "run" / "ablation.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["A: mean", "B: LSTM"]
    for row, result in zip(rows, found.results, strict=True):
        assert float(row["pearson_mean"]) == result.valid.mean
        assert float(row["pearson_std"]) == result.valid.std
        assert float(row["ensemble"]) == result.report.mean_pearson
        assert float(row["low"]) == result.valid.intervals.mean_low
        assert float(row["Joy"]) == result.valid.per_target["Joy"][0]
    assert (rows[0]["p"], rows[0]["difference"]) == ("", "")
    assert float(rows[1]["p"]) == found.differences[1].mean["p"]
    text = (tmp_path / "run" / "ablation.md").read_text()
    assert f"| B: LSTM | {found.results[1].valid.mean:.3f} ± {found.results[1].valid.std:.3f} |" in text
    assert "2000 bootstrap resamples of clips" in text


def test_an_ablation_goes_on_where_it_stopped_and_takes_more_seeds_and_rows(labelled, labelled_cache, tmp_path):
    ablate(labelled, tmp_path / "run", rows=TWO[1:], seeds=1)
    assert not ablate(labelled, tmp_path / "run", rows=TWO).nothing_to_do
    assert ablate(labelled, tmp_path / "run", rows=TWO).nothing_to_do
    ablate(labelled, tmp_path / "whole", rows=TWO)
    for name in ("ablation.csv", "ablation.md", "ablation.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(RunFolderError, match=r"lr \(there 0.003, now 0.01\)"):
        ablate(labelled, tmp_path / "run", rows=TWO, lr=0.01)


def test_a_foreign_folder_is_refused(labelled, labelled_cache, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="is no ablation"):
        ablate(labelled, tmp_path, rows=TWO)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_rows_come_from_a_file_of_any_settings(tmp_path):
    (tmp_path / "rows.toml").write_text(
        '[[row]]\nname = "plain"\n[[row]]\nname = "mixed"\nlr = 1e-3\n[row.augment]\nmixup = 0.4\n'
    )
    plain, mixed = rows_settings(read_rows(tmp_path / "rows.toml"))
    assert (plain[0], mixed[0]) == ("plain", "mixed")
    assert (mixed[1].lr, mixed[1].augment["mixup"], plain[1].augment["mixup"]) == (1e-3, 0.4, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("[[rows]]\nname = 'a'", "did you mean 'row'"),
        ("[[row]]\nlr = 1.0", "row 1 has no name"),
        ("[[row]]\nname = '!'", "needs a name with a letter"),
        ("[[row]]\nname = 'a b'\n[[row]]\nname = 'A-B'", "'a b' and 'A-B' share the folder a-b"),
        ("[[row]]\nname = 'a'\nseed = 3", "row 'a': seed is the same for all rows"),
        ("[[row]]\nname = 'a'\nhiden = 3", "row 'a': .*did you mean 'hidden'"),
        ("[[row]", "not valid TOML"),
    ],
)
def test_wrong_rows_are_named(tmp_path, text, message):
    (tmp_path / "rows.toml").write_text(text)
    with pytest.raises(TrainSettingsError, match=message):
        rows_settings(read_rows(tmp_path / "rows.toml"))


def test_an_option_that_no_rows_head_has_is_refused():
    with pytest.raises(TrainSettingsError, match="no row's head has the option 'hidden'"):
        rows_settings(TWO[:1], hidden=3)
