"""What a run records of the machine and the weights it was made with, and what it says when it resumes."""

import platform
import tomllib

import pytest
import torch

from train_head.protocols import train as train_protocol
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import resolve_settings

QUICK = {"hidden": 4, "layers": 1, "epochs": 2, "lr": 3e-3, "precision": "fp32", "batch_size": 14}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


class Heard(Reporter):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def epoch_finished(self, record) -> None:
        self.heard.append(record["epoch"])

    def step_finished(self, *step) -> None:
        self.heard.append(step)

    def note(self, text) -> None:
        self.heard.append(text)


class Stop(Reporter):
    """Interrupts the run after an epoch."""

    def epoch_finished(self, record) -> None:
        raise KeyboardInterrupt


def train(labelled, out, reporter=SILENT):
    label_files = LabelFiles.named(labelled / "train.csv", labelled / "valid.csv")
    inputs = gather_inputs(labelled / "features.zarr", label_files)
    return train_protocol(inputs, out, resolve_settings(**QUICK), reporter=reporter)


def test_versions_and_licence_are_recorded_and_compared_by_nobody(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run")
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["versions"]["torch"] == torch.__version__
    assert config["versions"]["python"] == platform.python_version()
    assert set(config["versions"]) == {"emi", "torch", "python", "platform"}
    assert config["licence"] == {"name": "MIT", "commercial_use": "yes"}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "The weights of `silero`: licence MIT, commercial use: yes." in card
    lines = (tmp_path / "run" / "config.toml").read_text().splitlines()
    older = "\n".join(line for line in lines if not line.startswith("torch ="))
    (tmp_path / "run" / "config.toml").write_text(older)
    reporter = Heard()
    assert train(labelled, tmp_path / "run", reporter).nothing_to_do
    assert reporter.heard == []


@pytest.mark.parametrize("began", ["2.9.1", torch.__version__])
def test_a_run_that_resumes_under_other_versions_says_so_once(labelled, labelled_cache, tmp_path, began):
    with pytest.raises(KeyboardInterrupt):
        train(labelled, tmp_path / "run", Stop())
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(f'torch = "{torch.__version__}"', f'torch = "{began}"'))
    reporter = Heard()
    train(labelled, tmp_path / "run", reporter)
    note = (
        f"{tmp_path / 'run'} was begun with torch 2.9.1, and continues with torch {torch.__version__}: its figures may "
        "differ in their last digits"
    )
    notes = [note] if began == "2.9.1" else []
    assert reporter.heard == [*notes, (2, "training", 1, 2), (2, "training", 2, 2), 2]
