"""The options of label files as typed: `--targets`, `--label-range`, `--rater`, and what is said of them."""

import csv
import inspect
import json
import re
import tomllib

import pytest
from typer.testing import CliRunner, Result

from cache.errors import EmiError
from emi.cli import ablate, app, compare, evaluate, finetune, sweep, table1, train_head

QUICK = ("--head", "mean", "--epochs", 1, "--lr", 1e-2)


def emi(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, EmiError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def tables(labelled, tmp_path_factory):
    """Label files with valence from -1 to 1, as a spreadsheet saves them, two raters in each."""
    root = tmp_path_factory.mktemp("tables")
    for name in ("train", "valid"):
        with (labelled / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with (root / f"{name}.csv").open("w", newline="", encoding="utf-16") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(["start", "FILENAME", "remarks", "who", "V", "Calm"])
            for i, row in enumerate(rows):
                for who, more in (("a", 0.05), ("b", -0.05)):
                    valence = max(-1, min(1, 2 * float(row["Joy"]) - 1 + (more if i % 2 else -more)))
                    numbers = (text.replace(".", ",") for text in (f"{valence:.3f}", row["Calm"]))
                    writer.writerow([i, row["Filename"], "-", who, *numbers])
    return root


@pytest.fixture(scope="module")
def run(tables, labelled_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    files = ("--cache", labelled_cache, "--train", tables / "train.csv", "--valid", tables / "valid.csv")
    options = ("--targets", "V", "--label-range", "-1,1", "--rater", "who")
    return out, emi("train-head", *files, "--out", out, *QUICK, *options), (*files, *options)


def test_before_training_one_line_says_what_is_trained_on(run):
    lines = run[1].stdout.splitlines()
    assert lines[0] == "targets: V; ignored: start, remarks, Calm"
    assert "epoch" in lines[1]
    assert "2 raters, 2.0 per clip, 12 clips" in lines


def test_the_run_records_how_its_labels_were_read(run):
    config = tomllib.loads((run[0] / "config.toml").read_text())
    assert config["label_range"] == [-1.0, 1.0]
    assert (config["data"]["targets"], config["data"]["rater"]) == (["V"], "who")
    assert "nothing to do" in emi("train-head", *run[2], "--out", run[0], *QUICK).stdout


def test_evaluate_takes_the_options_and_compare_those_of_the_run(run, tables, tmp_path):
    predictions = run[0] / "predictions_valid.csv"
    options = ("--targets", "V", "--rater", "who", "--bins", "--json", tmp_path / "s.json")
    shown = emi("evaluate", predictions, tables / "valid.csv", "--label-range=-1,1", *options).stdout
    assert shown.startswith("targets: V; ignored: start, remarks, Calm\n12 clips\n")
    numbers = json.loads((tmp_path / "s.json").read_text())
    assert numbers["raters"]["reliability"]["V"] > 0.9
    assert (numbers["bins"]["edges"][0], numbers["bins"]["edges"][-1]) == (-1.0, 1.0)
    assert re.search(r"^V +-1 ", shown, re.MULTILINE)
    assert "12 clips" in emi("compare", run[0], run[0], "--resamples", 5).stdout


def test_a_submission_is_on_the_scale_of_the_labels(run, labelled, tmp_path):
    media = [labelled / "audio" / f"{i:05d}.wav" for i in (3, 2)]
    said = emi("predict", *media, "--model", run[0], "--submission", tmp_path / "s.csv", "--csv", tmp_path / "p.csv")
    assert "clipped to -1 and 1" in said.stdout
    with (tmp_path / "s.csv").open() as file:
        sent = {row["Filename"]: float(row["V"]) for row in csv.DictReader(file)}
    with (tmp_path / "p.csv").open() as file:
        plain = {str(int(row["Filename"])): float(row["V"]) for row in csv.DictReader(file)}
    assert sent == {clip: max(-1.0, min(1.0, value)) for clip, value in plain.items()}


def test_an_error_names_the_option_that_helps(tables, labelled_cache, tmp_path):
    files = ("--cache", labelled_cache, "--train", tables / "train.csv", "--valid", tables / "valid.csv")
    command = ("train-head", *files, "--out", tmp_path / "run", *QUICK)
    with pytest.raises(
        EmiError, match="clip '0' stands in line 2 already; if these are several raters, give --rater 'who'"
    ):
        emi(*command)
    with pytest.raises(EmiError, match="name the columns that are labels with --targets"):
        emi(*command, "--rater", "who")
    with pytest.raises(EmiError, match="outside 0 to 1; give --label-range -1,1"):
        emi(*command, "--rater", "who", "--targets", "V")
    with pytest.raises(EmiError, match="do not go together"):
        emi(*command, "--label-range", "-1,1", "--label-scale", 100)


@pytest.mark.parametrize("command", [ablate, compare, evaluate, finetune, sweep, table1, train_head])
def test_every_command_that_reads_labels_has_the_options(command):
    function = getattr(command, command.__name__.rpartition(".")[2])
    assert {"targets", "label_range", "label_scale", "rater", "group_by"} <= set(inspect.signature(function).parameters)
