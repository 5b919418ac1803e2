"""Two processes, started by torchrun or by the first of them, take the steps of one."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from warm_python import python

from emi.finetuning.local_processes import LocalProcessError
from train_head.data.labels import read_labels
from train_head.errors import TrainSettingsError

slow = pytest.mark.slow
LOSSES = [pytest.param("mse", marks=slow), "0.5*ccc + 0.5*pearson", pytest.param("zero_inflated", marks=slow)]


def command(labelled, checkpoint, audio, out, *more):
    files = ["--media", labelled / "audio", "--train", labelled / "train.csv", "--valid", labelled / "valid.csv"]
    settings = ["--epochs", 2, "--batch-size", 8, "--lr", 3e-3, "--backbone-lr", 1e-3, "--backbone-dropout", 0]
    exact = ["--precision", "fp32", "--device", "cpu", "--set", "hidden=8", "--set", "dropout=0.0"]
    place = ["--out", out, "--backbone", checkpoint, "--audio", audio]
    return [str(part) for part in ("finetune", *files, *place, *settings, *exact, *more)]


def run(arguments, processes=0):
    start = [python(), "-m", "emi"]
    if processes:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        many = ["-m", "torch.distributed.run", "--nproc-per-node", processes, "--master-port", port, "-m", "emi"]
        start = [python(), *map(str, many)]
    done = subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(one, two, atol=1e-4):
    for ours, theirs in zip(records(two), records(one), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=atol)
        assert ours["valid_pearson"] == pytest.approx(theirs["valid_pearson"], abs=20 * atol)
    a, b = (read_labels(out / "predictions_valid.csv", check_range=False) for out in (one, two))
    assert a.ids == b.ids
    np.testing.assert_allclose(a.values, b.values, rtol=0, atol=atol)


@pytest.mark.parametrize("batch_seconds", [2, pytest.param(0, marks=slow)])
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_take_the_steps_of_one(labelled, checkpoint, audio, tmp_path, loss, batch_seconds):
    """Also where each has several pieces to compute for a step, and where one has fewer than the other."""
    one, two = tmp_path / "one", tmp_path / "two"
    run(command(labelled, checkpoint, audio, one, "--loss", loss))
    said = run(command(labelled, checkpoint, audio, two, "--loss", loss, "--batch-seconds", batch_seconds), 2)
    assert_equal_runs(one, two)
    assert said.count("epoch   1/2") == 1  # one of them speaks
    assert said.count("run folder:") == 1


def test_the_first_starts_the_other(labelled, checkpoint, audio, tmp_path):
    more = ("--loss", "mse", "--batch-seconds", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    run(command(labelled, checkpoint, audio, one, *more))
    said = run(command(labelled, checkpoint, audio, two, *more, "--processes", 2))
    assert_equal_runs(one, two)
    assert "processes = 2" in (two / "config.toml").read_text()
    assert said.count("epoch   1/2") == said.count("run folder:") == 1


def test_from_python_and_the_caller_is_as_it_was(tune, tmp_path, warm_children):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_PORT")
    before = torch.get_num_threads(), [os.environ.get(name) for name in names]
    runs = [tune(tmp_path / str(i), processes=n, backbone_dropout=0.0).report for i, n in enumerate((1, 3, 1, 2))]
    assert (torch.get_num_threads(), [os.environ.get(name) for name in names]) == before
    assert not torch.distributed.is_initialized()
    for report in runs[1:]:
        assert report.mean_pearson == pytest.approx(runs[0].mean_pearson, abs=2e-3)


def test_an_error_of_the_first_is_its_own(warm_children, tune, labelled, tmp_path, monkeypatch):
    """The others meet it too, and are not heard of."""
    with pytest.raises(TrainSettingsError, match="the backbone has 12 layers"):
        tune(tmp_path / "ft", processes=2, freeze="layers:13")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainSettingsError, match="torchrun or accelerate has started some already"):
        tune(tmp_path / "ft", processes=2)
    assert not list(tmp_path.iterdir())


def test_what_only_another_process_meets(tune, tmp_path, monkeypatch, capfd):
    """Such as too little memory: its words are told, and those of the connection that broke are not."""
    (tmp_path / "sitecustomize.py").write_text(FAILS)
    monkeypatch.syspath_prepend(tmp_path)
    for kind, said in (("MemoryError", "cpu has no memory for .* --processes 1 "), ("ValueError", "ValueError: of it")):
        monkeypatch.setenv("FAILS", kind)
        with pytest.raises(LocalProcessError, match="process 2: " + said):
            tune(tmp_path / kind, processes=2)
        assert ("Traceback" in capfd.readouterr().err) == (kind == "ValueError")
        assert not torch.distributed.is_initialized()
    assert tune(tmp_path / "ValueError").report is not None


FAILS = """
import os, sys
if "emi.finetuning.local_processes" in sys.orig_argv:
    import emi.finetuning.model as model
    def forward(*args, **more):
        raise {"MemoryError": MemoryError, "ValueError": ValueError}[os.environ["FAILS"]]("of it")
    model.BackboneWithHead.forward = forward
"""


def others(out):
    """Process ids of those that were started to share the training into a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if (
                b"emi.finetuning.local_processes" in words
                and f"TRAINS={out}".encode() in (place / "environ").read_bytes()
            ):
                found.append(int(place.name))
    return found


@contextlib.contextmanager
def started(arguments, out, temporary):
    command = [python(), "-m", "emi", *arguments]
    environment = os.environ | {"TRAINS": str(out), "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as it:
        try:
            yield it
        finally:
            it.kill()


@pytest.mark.parametrize("killed", ["first", "other"])
def test_killed_while_it_trains_the_run_goes_on(labelled, checkpoint, audio, tmp_path, killed):
    out, temporary = tmp_path / "ft", tmp_path / "temporary"
    temporary.mkdir()
    long = command(labelled, checkpoint, audio, out, "--processes", 2, "--epochs", 200)
    with started(long, out, temporary) as first:
        until(lambda: (out / "metrics.jsonl").is_file() and len(records(out)) > 1)
        (other,) = others(out)
        os.kill(first.pid if killed == "first" else other, signal.SIGKILL)
        said = first.communicate(timeout=100)[1]
        until(lambda: not others(out))
    if killed == "other":
        assert first.returncode == 2, said
        assert "emi: process 2 was killed by signal 9, which is what the kernel does where memory runs out" in said
        assert "Traceback" not in said
    done = len(records(out))
    with started(long, out, temporary) as first:
        until(lambda: len(records(out)) > done)
        first.send_signal(signal.SIGINT)
        said = first.communicate(timeout=100)[1]
        assert first.returncode == 130, said
        until(lambda: not others(out))
    left = [path for path in temporary.iterdir() if path.name.startswith("emi-")]
    assert len(left) == (killed == "first")  # which could not clean up


def until(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_each_validation_clip_counts_once_and_a_started_run_goes_on_with_other_processes(
    labelled, checkpoint, audio, tmp_path
):
    """Eleven validation clips over two processes; the run is begun by two and finished by one."""
    with (labelled / "valid.csv").open() as file:
        rows = list(csv.reader(file))
    odd = tmp_path / "odd.csv"
    with odd.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:12])
    one, two = tmp_path / "one", tmp_path / "two"
    run(command(labelled, checkpoint, audio, one, "--valid", odd))
    run([*command(labelled, checkpoint, audio, two, "--valid", odd), "--unfreeze-every", "1"], 2)
    assert len(read_labels(two / "predictions_valid.csv", check_range=False)) == 11
    assert records(one)[0]["frozen_stages"] == 1
    assert [record["frozen_stages"] for record in records(two)] == [15, 14]
    assert "nothing to do" in run([*command(labelled, checkpoint, audio, two, "--valid", odd), "--unfreeze-every", "1"])


@slow
def test_adapters_are_merged_in_every_process(labelled, checkpoint, audio, tmp_path):
    pytest.importorskip("peft")
    one, two = tmp_path / "one", tmp_path / "two"
    for out, processes in ((one, 0), (two, 2)):
        run(
            [*command(labelled, checkpoint, audio, out, "--lora", 2, "--freeze", "backbone"), "--epochs", "1"],
            processes,
        )
    assert_equal_runs(one, two)


@slow
def test_a_protocol_of_several_runs_is_shared_too(labelled, checkpoint, audio, tmp_path):
    out = tmp_path / "seeds"
    run(command(labelled, checkpoint, audio, out, "--seeds", 2, "--train-on-all", "--epochs", 1), 2)
    more = run(command(labelled, checkpoint, audio, out, "--seeds", 2, "--train-on-all", "--epochs", 1), 2)
    assert "nothing to do" in more
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["all", "seed-0", "seed-1"]
    assert (out / "all" / "ensemble.toml").is_file()
