"""The command line as a user meets it: a real process each time."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from warm_python import python

from cache import open_cache
from emi.cli import app

CACHE_COMMANDS = "info verify repair compact convert merge derive import export remove"
COMMANDS = [
    *("extract", "train-head", "ablate", "sweep", "finetune", "table1", "predict", "evaluate", "compare", "ensemble"),
    *("demo-data", "faces", "clean", "submission", "import-weights"),
    *(f"cache {name}" for name in CACHE_COMMANDS.split()),
]


def emi(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [python(), "-m", "emi", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def test_every_command_is_covered_here():
    group = typer.main.get_command(app)
    names = {name for name in group.commands if name != "cache"} | {
        f"cache {n}" for n in group.commands["cache"].commands
    }
    assert names == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_example(command):
    text = emi(*command.split(), "--help").stdout
    assert f"Example: emi {command}" in " ".join(text.split())


def test_a_users_error_is_one_sentence_and_exit_code_2(tmp_path):
    result = emi("extract", tmp_path / "nowhere", "--cache", tmp_path / "c.zarr", code=2)
    assert result.stderr.startswith("emi: there is nothing at")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback_wherever_it_stands(tmp_path, before):
    arguments = ["cache", "info", tmp_path / "none.zarr"]
    result = emi(*(["--debug", *arguments] if before else [*arguments, "--debug"]), code=2)
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp8"], "precision must be one of"),
        (["--shard", "3/2"], "--shard takes I/N"),
        (["--max-seconds", "0"], "max_seconds must be above zero"),
        (["--backbone", "/no/such/folder"], "--backbone FOLDER"),
        (["--precision", "bf16"], "computes in fp32 only"),
        (["--media-root", "."], "leave it out"),
    ],
)
def test_wrong_options_of_extract_are_named_before_any_work(labelled, tmp_path, options, message):
    result = emi("extract", labelled / "audio", "--cache", tmp_path / "c.zarr", *options, code=2)
    assert message in result.stderr
    assert not (tmp_path / "c.zarr").exists()


def test_the_two_stages_and_prediction_agree(labelled, tmp_path):
    cache, run = tmp_path / "f.h5", tmp_path / "run"
    arguments = ("extract", labelled / "audio", "--cache", cache)
    plan = emi(*arguments, "--dry-run").stdout
    assert "40 clips, 40 to do" in plan
    assert not cache.exists()
    assert "wrote 40 clips" in emi(*arguments).stdout
    assert "nothing to do: all 40 clips" in emi(*arguments).stdout
    facts = json.loads(emi("cache", "info", cache, "--json").stdout)
    assert (facts["clips"], facts["dim"], facts["fingerprint"]["backbone"]) == (40, 384, "silero")
    assert "40 clips" in emi("cache", "info", cache).stdout
    splits = ("--train", labelled / "train.csv", "--valid", labelled / "valid.csv")
    training = ("train-head", "--cache", cache, *splits, "--out", run, "--epochs", 3, "--hidden", 16, "--lr", 3e-3)
    shown = emi(*training).stdout
    assert re.search(r"epoch   3/3  loss 0\.\d+  pearson", shown)
    assert "nothing to do" in emi(*training).stdout
    assert "mean" in emi("evaluate", run / "predictions_valid.csv", labelled / "valid.csv").stdout
    emi("predict", labelled / "audio", "--model", run, "--csv", tmp_path / "p.csv")
    predicted = {row["Filename"]: row for row in read(tmp_path / "p.csv")}
    for row in read(run / "predictions_valid.csv"):
        for name in ("Joy", "Calm"):
            assert float(predicted[row["Filename"].zfill(5)][name]) == pytest.approx(float(row[name]), abs=1e-5)


def test_unreadable_files_are_listed_and_the_exit_code_is_1(labelled, tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "good.wav").write_bytes((labelled / "audio" / "00000.wav").read_bytes())
    (folder / "bad.wav").write_bytes(b"")
    result = emi("extract", folder, "--cache", tmp_path / "c.zarr", code=1)
    assert "wrote 1 clips" in result.stdout
    assert "bad.wav: is empty (0 bytes)" in result.stderr
    assert [row["id"] for row in read(tmp_path / "failures.csv")] == ["bad"]
    assert open_cache(tmp_path / "c.zarr").ids == ["good"]


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_extraction_keeps_what_is_done_and_goes_on(labelled, tmp_path, name):
    folder, cache = tmp_path / "media", tmp_path / "c.zarr"
    folder.mkdir()
    for i in range(6000):
        (folder / f"{i:05d}.wav").hardlink_to(labelled / "audio" / f"{i % 40:05d}.wav")
    command = [python(), "-m", "emi", "extract", folder, "--cache", cache]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"extracting ")  # some clips are done
    process.send_signal(name)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command resumes there" in errors
    kept = len(open_cache(cache))
    assert 0 < kept < 6000


def test_an_interruption_that_python_drops_is_raised_again():
    """As where Ctrl-C comes in a destructor, or while a module is imported."""
    code = """
import sys, time
import emi.cli
class Dropped:
    def __del__(self):
        raise KeyboardInterrupt
def app(arguments):
    Dropped()
    time.sleep(30)
emi.cli.app = app
try:
    emi.cli.main()
except KeyboardInterrupt:
    print("interrupted")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=True)
    assert result.stdout == "interrupted\n"


def test_predicting_unreadable_media_exits_with_1_and_still_predicts_the_others(labelled, labelled_cache, tmp_path):
    run = tmp_path / "run"
    splits = ("--train", labelled / "train.csv", "--valid", labelled / "valid.csv")
    emi("train-head", "--cache", labelled_cache, *splits, "--out", run, "--epochs", 1, "--head", "mean")
    (tmp_path / "bad.mp3").write_text("not media")
    result = emi("predict", labelled / "audio" / "00003.wav", tmp_path / "bad.mp3", "--model", run, code=1)
    assert result.stdout.splitlines()[0] == "Filename,Joy,Calm"
    assert result.stdout.splitlines()[1].startswith("00003,")
    assert "is not a media file" in result.stderr


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
