"""`emi train-head` with its protocols and `emi ablate`, as typed."""

import csv
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cache.errors import EmiError
from emi.cli import app

QUICK = ("--epochs", 2, "--hidden", 4, "--layers", 1, "--lr", 3e-3)


def emi(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, EmiError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


@pytest.fixture
def data(labelled: Path, labelled_cache: Path) -> tuple[object, ...]:
    return ("--cache", labelled_cache, "--train", labelled / "train.csv", "--valid", labelled / "valid.csv")


def test_seeds_show_each_run_and_their_spread_and_then_have_nothing_to_do(data, labelled, tmp_path):
    command = ("train-head", *data, "--out", tmp_path / "run", *QUICK, "--seeds", 2)
    shown = emi(*command).stdout
    ensemble = shown.index("ensemble of the 2 runs (their predictions averaged):")
    assert shown.index("seed-0:") < shown.index("seed-1:") < shown.index("mean over seeds") < ensemble
    assert shown.count("epoch   2/2") == 2
    assert "nothing to do" not in shown
    again = emi(*command).stdout
    assert "nothing to do" in again
    assert "epoch   1" not in again
    emi("predict", labelled / "audio" / "00030.wav", "--model", tmp_path / "run", "--csv", tmp_path / "p.csv")
    (row,) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    wanted = {
        r["Filename"]: r for r in csv.DictReader((tmp_path / "run" / "predictions_valid.csv").read_text().splitlines())
    }["30"]
    assert float(row["Joy"]) == pytest.approx(float(wanted["Joy"]), abs=1e-5)


def test_folds_need_no_validation_split(labelled, labelled_cache, tmp_path):
    files = ("--cache", labelled_cache, "--train", labelled / "train.csv", "--out", tmp_path / "run")
    shown = emi("train-head", *files, *QUICK, "--folds", 2, "--group-by", r"^\d").stdout
    assert "all clips, each predicted by the run that did not train on it" in shown
    assert "groups of 28 clips" in shown
    labels, predicted = (tmp_path / "run" / f"{name}_folds.csv" for name in ("labels", "predictions"))
    assert "28 clips" in emi("evaluate", predicted, labels).stdout


def test_training_on_all_says_where_and_that_nothing_validates_it(data, tmp_path):
    command = ("train-head", *data, "--out", tmp_path / "run", *QUICK, "--train-on-all")
    shown = emi(*command).stdout
    assert "all:" in shown
    assert f"without validation: {tmp_path / 'run' / 'all'}" in shown
    assert "nothing to do" in emi(*command).stdout


def test_stopping_early_is_what_the_progress_counts_to(data, tmp_path):
    shown = emi("train-head", *data, "--out", tmp_path / "run", *QUICK, "--stop-after", 1).stdout
    assert "epoch   1/1" in shown
    assert "epoch   2" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", 2, "--folds", 2), "do not go together"),
        (("--folds", 2, "--train-on-all"), "leave out --folds or --train-on-all"),
        (("--group-by", r"(\d)(\d)"), "has 2 groups, expected one or none"),
        (("--group-by", r"^\d"), "validation groups are in the training split too"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(data, tmp_path, options, message):
    with pytest.raises(EmiError, match=message):
        emi("train-head", *data, "--out", tmp_path / "run", *QUICK, *options)
    assert not (tmp_path / "run").exists()


def test_an_ablation_prints_its_rows_and_writes_them_where_asked(data, tmp_path):
    (tmp_path / "base.toml").write_text("epochs = 1\nlr = 1e-3\n[lstm]\nhidden = 4\nlayers = 1\n")
    command = ("ablate", *data, "--out", tmp_path / "run", "--config", tmp_path / "base.toml", "--seeds", 1)
    shown = emi(*command, "--csv", tmp_path / "table.csv").stdout
    for name in ("mean pooling", "LSTM + global vector + dropout"):
        assert name in shown
    assert "lstm-global-vector/seed-0:" in shown
    rows = [row["row"] for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())]
    assert rows == ["mean pooling", "LSTM", "LSTM + global vector", "LSTM + global vector + dropout"]
    assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "run" / "ablation.csv").read_bytes()
    assert "nothing to do" in emi(*command).stdout


def test_other_rows_come_from_a_file(data, tmp_path):
    (tmp_path / "rows.toml").write_text(
        '[[row]]\nname = "a"\nhead = "mean"\n[[row]]\nname = "b"\nhead = "mean"\nlr = 1.0\n'
    )
    command = (
        "ablate",
        *data,
        "--out",
        tmp_path / "run",
        "--rows",
        tmp_path / "rows.toml",
        "--epochs",
        1,
        "--seeds",
        1,
    )
    emi(*command)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["a", "b"]


def test_help_names_every_head_and_loss():
    from train_head.heads import HEADS
    from train_head.losses import LOSSES
    from train_head.training.settings import TrainSettings

    helps = {field.name: field.metadata["help"] for field in fields(TrainSettings)}
    assert [name for name in HEADS if name not in helps["head"]] == []
    assert [name for name in LOSSES if name not in helps["loss"]] == []


def test_set_reaches_settings_that_have_an_option_of_their_own(labelled, labelled_cache, tmp_path):
    import tomllib

    from typer.testing import CliRunner

    from emi.cli import app

    files = ["--cache", labelled_cache, "--train", labelled / "train.csv", "--valid", labelled / "valid.csv"]
    more = ["--epochs", "1", "--hidden", "8", "--set", "lr=0.002", "--set", "noise=0.1", "--out", tmp_path / "run"]
    result = CliRunner().invoke(app, ["train-head", *map(str, [*files, *more])])
    assert result.exit_code == 0, result.output
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["lr"], config["augment"]["noise"]) == (0.002, 0.1)
