"""Figures for trackers: TensorBoard's are read back by its reader, others by a tracker of this test."""

import json
import os
import subprocess
import sys
from typing import ClassVar

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from typer.testing import CliRunner

from emi.cli import app
from train_head.errors import TrainSettingsError
from train_head.protocols import train
from train_head.reports.trackers import TrackerDependencyError, Trackers
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.loop import Reporter
from train_head.training.settings import resolve_settings

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def record_of(epoch: int, joy: float | None = 0.25) -> dict[str, object]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "lr": 1e-4,
        "frames_per_second": 1000 * epoch,
        "valid_mean_pearson": joy,
        "valid_pearson": {"Joy": joy},
    }


def read(run) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) of everything in RUN/tensorboard."""
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def keep(run, records) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_training_leaves_the_scalars_of_its_metrics(labelled, labelled_cache, tmp_path):
    settings = resolve_settings(hidden=8, epochs=3, lr=3e-3, precision="fp32")
    run = tmp_path / "run"
    with Trackers(run, ["tensorboard"]) as trackers:
        reporter = Reporter()
        reporter.epoch_finished = trackers
        inputs = gather_inputs(labelled_cache, LabelFiles.named(labelled / "train.csv", labelled / "valid.csv"))
        result = train(inputs, run, settings, reporter=reporter).result
    found = read(run)
    wanted = {
        "train/loss": [record["train_loss"] for record in result.history],
        "train/lr": [record["lr"] for record in result.history],
        "train/frames_per_second": [record["frames_per_second"] for record in result.history],
        "valid/pearson/mean": [record["valid_mean_pearson"] for record in result.history],
        "valid/pearson/Joy": [record["valid_pearson"]["Joy"] for record in result.history],
        "valid/pearson/Calm": [record["valid_pearson"]["Calm"] for record in result.history],
    }
    assert found.keys() == wanted.keys()
    for tag, values in wanted.items():
        assert [step for step, _ in found[tag]] == [1, 2, 3]
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-6)


def test_a_resumed_run_has_each_epoch_once(tmp_path):
    records = [record_of(epoch) for epoch in range(1, 6)]
    with Trackers(tmp_path, ["tensorboard"]) as trackers:
        for record in records[:3]:
            trackers(record | {"train_loss": 9.0})
    keep(tmp_path, records[:2])  # the third epoch was not saved, and is done again
    with Trackers(tmp_path, ["tensorboard"]) as trackers:
        for record in records[2:]:
            trackers(record)
    losses = read(tmp_path)["train/loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5]
    assert [value for _, value in losses] == pytest.approx([1 / epoch for epoch in range(1, 6)])


def test_a_run_that_began_without_trackers_is_shown_whole(tmp_path):
    keep(tmp_path, [record_of(epoch) for epoch in range(1, 5)])
    with Trackers(tmp_path, ["tensorboard"]) as trackers:
        trackers(record_of(4))
    assert [step for step, _ in read(tmp_path)["train/loss"]] == [1, 2, 3, 4]


def test_an_undefined_correlation_is_no_point(tmp_path):
    with Trackers(tmp_path, ["tensorboard"]) as trackers:
        trackers(record_of(1, None))
        trackers(record_of(2, 0.5))
    assert read(tmp_path)["valid/pearson/Joy"] == read(tmp_path)["valid/pearson/mean"] == [(2, 0.5)]


def test_several_runs_have_a_folder_each(tmp_path):
    with Trackers(tmp_path, ["tensorboard"]) as trackers:
        for name in ("seed-0", "seed-1"):
            trackers.move(tmp_path / name)
            trackers(record_of(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]
    assert read(tmp_path / "seed-1")["train/loss"] == [(1, 1.0)]


def test_trackers_without_an_epoch_leaves_nothing(tmp_path):
    with Trackers(tmp_path / "run", ["tensorboard"]):
        pass
    assert not (tmp_path / "run").exists()


class Recorder(GeneralTracker):
    """Keeps what it is given."""

    name, requires_logging_directory, tracker = "wandb", False, None
    made: ClassVar[list["Recorder"]] = []

    def __init__(self, project: str, **how: object) -> None:
        self.begun, self.logged, self.finished = (project, how), [], False
        self.made.append(self)

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_any_tracker_of_accelerate_gets_every_epoch_of_each_run(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["wandb", "tensorboard"])
    monkeypatch.setattr(Recorder, "made", [])
    run = tmp_path / "seed-0"
    run.mkdir()
    keep(run, [record_of(1)])
    with Trackers(tmp_path, ["wandb", "tensorboard", "wandb"]) as trackers:
        trackers.move(run)
        trackers(record_of(2))
        trackers(record_of(3, None))
        trackers.move(tmp_path / "seed-1")
        trackers(record_of(1))
    first, second = Recorder.made
    assert first.begun == ("emi", {"name": f"{tmp_path.name}/seed-0"})
    assert [step for step, _ in first.logged] == [1, 2, 3]
    assert first.logged[1][1]["valid/pearson/Joy"] == 0.25
    assert "valid/pearson/Joy" not in first.logged[2][1]
    assert [step for step, _ in second.logged] == [1]
    assert first.finished
    assert second.finished
    assert [step for step, _ in read(run)["train/loss"]] == [1, 2, 3]


@pytest.mark.parametrize(("name", "package"), [("tensorboard", r"'emi-mimicry\[tensorboard\]'"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch, name, package):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(TrackerDependencyError, match=f"pip install {package}$"):
        Trackers(tmp_path, [name])


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(TrainSettingsError, match="unknown tracker 'wanbd'; did you mean 'wandb'"):
        Trackers(tmp_path, ["wanbd"])


@pytest.mark.parametrize("option", ["--tensorboard", "--track=tensorboard", "--tracker=tensorboard"])
def test_the_command_line_names_trackers(labelled, labelled_cache, tmp_path, option):
    files = ("--cache", labelled_cache, "--train", labelled / "train.csv", "--valid", labelled / "valid.csv")
    arguments = ("train-head", *files, "--out", tmp_path / "run", "--head", "mean", "--epochs", 2, option)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert [step for step, _ in read(tmp_path / "run")["train/loss"]] == [1, 2]


def test_runs_that_share_no_step_do_not_wait_for_one_another(tmp_path):
    """As where torchrun starts a fold for each process."""
    code = f"from train_head.reports.trackers import Trackers as T\nwith T({str(tmp_path)!r}, ['tensorboard']) as t: "
    code += f"t({record_of(1)!r})"
    several = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | several, check=True, timeout=120)
    assert [step for step, _ in read(tmp_path)["train/loss"]] == [1]
