"""Figures of each epoch for the experiment trackers that accelerate knows: TensorBoard, wandb, MLflow and others."""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cache.errors import EmiError
from cache.paths import StrPath
from train_head.errors import TrainSettingsError, unknown
from train_head.runs import run_folder
from train_head.targets import mean_score, recorded_score, target_scores

TENSORBOARD, PROJECT = "tensorboard", "emi"
"""A tracker, and the folder of its files in a run folder; the project under which other trackers list runs."""
RUN_NAME = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name", "mlflow": "run_name"}
"""Argument of a tracker that names a run in its project."""
SCALARS = {
    "train/loss": "train_loss",
    "train/lr": "lr",
    "train/frames_per_second": "frames_per_second",
}
"""Tag to key of an epoch's record; beside them are `valid/pearson/mean` and one per target, or `valid/ccc/…`."""


class TrackerDependencyError(EmiError, ImportError):
    """The package of a tracker is not installed."""


class Trackers(AbstractContextManager["Trackers"]):
    """Passes each epoch's record to trackers; call it with the record after each epoch.

    At the first epoch they also get the earlier epochs from metrics.jsonl, and TensorBoard drops what its files hold of
    them. So a run that was killed and resumed, or began without trackers, has each epoch once. Other trackers list a
    resumed run as a new one, with all epochs.

    Args:
        out: run folder, or the folder of several runs; nothing is created before the first epoch is done.
        names: trackers as accelerate calls them. TensorBoard's files are in RUN/tensorboard.

    Raises:
        TrainSettingsError: an unknown tracker.
        TrackerDependencyError: a tracker is not installed.
    """

    def __init__(self, out: StrPath, names: Iterable[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        if self._names:
            _check(self._names)
        self._parent, self._run = Path(out).absolute().parent, Path(out)
        self._open: list[Any] = []

    def __call__(self, record: dict[str, Any]) -> None:
        """Pass one epoch on."""
        records = [record]
        if self._names and not self._open:
            _say_which_process_writes()
            before = run_folder.read_history(self._run) if (self._run / run_folder.METRICS).is_file() else []
            records = [*(each for each in before if each["epoch"] < record["epoch"]), record]
            self._open = [self._start(name, records[0]["epoch"]) for name in self._names]
        for each in records:
            of = f"valid/{recorded_score(each)}"
            values = {tag: each[key] for tag, key in SCALARS.items()} | {f"{of}/mean": mean_score(each)}
            values |= {f"{of}/{name}": value for name, value in target_scores(each).items()}
            for tracker in self._open:
                tracker.log({tag: value for tag, value in values.items() if value is not None}, step=each["epoch"])

    def move(self, run: StrPath) -> None:
        """Close the trackers; the next epoch belongs to another run."""
        self.close()
        self._run = Path(run)

    def close(self) -> None:
        """Close the trackers; a later epoch would open them again."""
        for tracker in self._open:
            tracker.finish()
        self._open = []

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, name: str, first: int) -> Any:
        """Return a tracker of the run that is ready for its epochs from `first` on."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        if name == TENSORBOARD:
            tracker = kind(TENSORBOARD, logging_dir=str(self._run), purge_step=first)
        else:
            folder: Sequence[str] = [str(self._run)] if kind.requires_logging_directory else []
            title = Path(os.path.relpath(self._run, self._parent)).as_posix()
            tracker = kind(PROJECT, *folder, **({RUN_NAME[name]: title} if name in RUN_NAME else {}))
        if hasattr(tracker, "start"):  # older accelerate starts it when it is made
            tracker.start()
        return tracker


def _say_which_process_writes() -> None:
    """Make the state that accelerate's trackers ask which process writes.

    Runs that torchrun starts side by side, and that share no step, must not wait for one another here.
    """
    from accelerate import PartialState
    from torch import distributed

    names = () if distributed.is_initialized() else ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        PartialState()
    finally:
        os.environ.update(hidden)


def _check(names: Sequence[str]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrainSettingsError(unknown("tracker", name, LOGGER_TYPE_TO_CLASS))
        if name not in installed:
            package = "'emi-mimicry[tensorboard]'" if name == TENSORBOARD else name
            raise TrackerDependencyError(f"the tracker {name} is not installed; install it with: pip install {package}")
