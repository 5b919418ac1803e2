"""Folds as separate jobs: each trains one, in any order or at once, and the last puts them together."""

import multiprocessing
import sys
from pathlib import Path

import pytest

import emi
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.protocols import ProtocolResult
from train_head.protocols import train as train_protocol
from train_head.runs import run_folder
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.result import TrainResult
from train_head.training.settings import resolve_settings
from train_head.validation import Validation

QUICK = {"hidden": 4, "layers": 1, "epochs": 2, "lr": 3e-3, "precision": "fp32"}
TIMED = ("metrics.jsonl", "last.pt", "README.md")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


def train(root: Path, out: Path, **settings):
    return emi.train_head(root / "features.zarr", root / "train.csv", root / "valid.csv", out, **(QUICK | settings))


def joined(folder: Path) -> dict[str, bytes]:
    """What the folds make together, and each without its times; with the folder's own place left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and (path.parent == folder or path.name not in TIMED)]
    return {str(p.relative_to(folder)): p.read_bytes().replace(bytes(folder), b"OUT") for p in paths}


def test_jobs_in_any_order_give_what_one_gives(labelled, labelled_cache, tmp_path):
    whole = train(labelled, tmp_path / "whole", folds=3, test=labelled / "valid.csv")
    jobs = {k: train(labelled, tmp_path / "jobs", folds=3, only_fold=k, test=labelled / "valid.csv") for k in (2, 0)}
    for number, job in jobs.items():
        assert isinstance(job, TrainResult)
        assert job.folder == tmp_path / "jobs" / f"fold-{number}"
    assert not (tmp_path / "jobs" / "ensemble.toml").exists()
    last = train(labelled, tmp_path / "jobs", folds=3, only_fold=1, test=labelled / "valid.csv")
    assert isinstance(last, ProtocolResult)
    assert last.to_dict() == whole.to_dict()
    assert joined(tmp_path / "jobs") == joined(tmp_path / "whole")
    assert not last.nothing_to_do
    assert train(labelled, tmp_path / "jobs", folds=3, test=labelled / "valid.csv").nothing_to_do


def outcome(root: Path, out: Path, number: int | None):
    inputs = gather_inputs(root / "features.zarr", LabelFiles.named(root / "train.csv", root / "valid.csv"))
    return train_protocol(inputs, out, resolve_settings(**QUICK), Validation(folds=3, only_fold=number))


def test_the_missing_folds_are_counted_and_a_whole_run_trains_them(labelled, labelled_cache, tmp_path):
    assert outcome(labelled, tmp_path / "run", 1).missing_folds == (0, 2)
    again = outcome(labelled, tmp_path / "run", 1)
    assert again.nothing_to_do
    assert again.missing_folds == (0, 2)
    with run_folder.locked(tmp_path / "run" / "fold-1"):  # finished, but for the last moment of its job
        assert outcome(labelled, tmp_path / "run", 0).missing_folds == (1, 2)
    done = outcome(labelled, tmp_path / "run", None)
    assert done.missing_folds == ()
    assert done.result.epochs_trained == QUICK["epochs"]


def test_two_jobs_of_one_fold_are_one_too_many(labelled, labelled_cache, tmp_path):
    outcome(labelled, tmp_path / "run", 1)
    with (
        run_folder.locked(tmp_path / "run" / "fold-1"),
        pytest.raises(RunFolderError, match=r"another process trains into .*fold-1"),
    ):
        outcome(labelled, tmp_path / "run", 1)


def test_jobs_of_other_settings_do_not_mix(labelled, labelled_cache, tmp_path):
    outcome(labelled, tmp_path / "run", 1)
    with pytest.raises(RunFolderError, match=r"--lr \(there 0.003, now 0.01\)"):
        train(labelled, tmp_path / "run", folds=3, only_fold=0, lr=0.01)
    with pytest.raises(RunFolderError, match=r"--folds \(there 3, now 4\)\. To resume that run, give --folds 3"):
        train(labelled, tmp_path / "run", folds=4, only_fold=0)


def test_jobs_may_start_at_the_same_moment(labelled, labelled_cache, tmp_path):
    """The folder, the labels in it and the joining are shared; processes are forked, as a start would part them."""
    if sys.platform == "win32":
        pytest.skip("Windows cannot fork the processes of this test")
    context = multiprocessing.get_context("fork")
    splits = [context.Process(target=prepare, args=(labelled, tmp_path / "run", number)) for number in range(6)]
    for process in splits:
        process.start()
    for process in splits:
        process.join()
    assert [process.exitcode for process in splits] == [0] * 6
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.toml", "labels_folds.csv"]


def prepare(root: Path, out: Path, number: int) -> None:
    """Begin a fold, and end before the training, which has threads that do not survive a fork."""
    from train_head.protocols.folds import _begin

    inputs = gather_inputs(root / "features.zarr", LabelFiles.named(root / "train.csv", root / "valid.csv"))
    _begin(inputs, out, resolve_settings(**QUICK), 3)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"only_fold": 0}, "--only-fold 0 is one of --folds N"),
        ({"only_fold": 0, "seeds": 2}, "--only-fold 0 is one of --folds N"),
        ({"only_fold": 3, "folds": 3}, "takes 0 to 2, as the folders of 3 folds are called"),
        ({"only_fold": -1, "folds": 3}, "takes 0 to 2"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    labelled, labelled_cache, tmp_path, protocol, message
):
    with pytest.raises(TrainSettingsError, match=message):
        train(labelled, tmp_path / "run", **protocol)
    assert not (tmp_path / "run").exists()
