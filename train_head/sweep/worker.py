"""A process that trains one trial after another on splits that all workers share."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from optuna import Trial

from cache.errors import EmiError
from cache.system.machine import KILLED
from train_head.data.splits import Split
from train_head.targets import mean_score
from train_head.training.loop import Reporter
from train_head.training.settings import TrainSettings
from train_head.training.trainer import Trainer

OpenSplits = Callable[[], Mapping[str, Split]]
"""Opens the splits that trials train on, in each process anew; it is sent to them."""
NO_MAIN_GUARD = 87
"""Exit code of a worker that would have started a sweep, because it imported a script that calls one."""


class WorkerStartError(EmiError, RuntimeError):
    """The worker processes of a sweep exit before they can train."""


@dataclass(frozen=True)
class Task:
    """What a worker trains: a head, on some of the streams, or on all where these are None."""

    settings: TrainSettings
    streams: Sequence[str] | None = None


@dataclass(frozen=True)
class Epoch:
    """An epoch of a trial is done; the worker waits for the answer whether to continue."""

    number: int
    score: float | None


@dataclass(frozen=True)
class Finished:
    """A trial has ended: after its last epoch, pruned, or failed for a reason."""

    epochs: int
    best_epoch: int
    best: float | None
    seconds: float
    reason: str | None = None


@dataclass
class Worker:
    """The parent's end of a process.

    Attributes:
        process: the child.
        pipe: a `Task` goes in; None at the start, `Epoch` and `Finished` come out; True or False answers an epoch.
        ready: whether it has started to run the code of this file.
        trial: of the study, which it trains; None while it is idle.
        reported: the last epoch of the trial that was reported before an interruption; 0 without one.
        pruned: whether it was told to stop the trial.
    """

    process: BaseProcess
    pipe: Connection
    ready: bool = False
    trial: Trial | None = None
    reported: int = 0
    pruned: bool = False

    @classmethod
    def start(cls, open_data: OpenSplits, threads: int) -> "Worker":
        """Start a process. It is spawned, not forked: torch's threads do not survive a fork."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, open_data, threads), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def train(self, trial: Trial, task: Task) -> None:
        """Send a trial.

        Raises:
            OSError: the process is dead.
        """
        self.pipe.send(task)
        self.trial, self.pruned = trial, False
        self.reported = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=0)

    def stop(self) -> None:
        """Kill the process; its trial is lost."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def check_start(self) -> None:
        """Raise if a process exited before it started its work: all others would exit in the same way.

        Raises:
            WorkerStartError: says what to do.
        """
        self.process.join()
        code = self.process.exitcode or 0
        if self.ready or code <= 0:
            return
        what = (
            "the script that calls emi.sweep does so again when a worker process imports it"
            if code == NO_MAIN_GUARD
            else f"a worker process ended with exit code {code} while it imported the script that calls emi.sweep (its "
            "own error is above)"
        )
        raise WorkerStartError(f'{what}; put the call under `if __name__ == "__main__":`') from None

    def exit_text(self) -> str:
        """Return how the process ended, in words."""
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            hint = ", which is what the kernel does where memory runs out" if code == KILLED else ""
            return f"its process was killed by {signal.Signals(-code).name}{hint}"
        return f"its process ended with exit code {code}"


def leave_to_the_parent() -> None:
    """Exit if this process is a worker that is still importing the script which started the sweep."""
    if getattr(current_process(), "_inheriting", False):
        sys.exit(NO_MAIN_GUARD)


def _work(pipe: Connection, open_data: OpenSplits, threads: int) -> None:
    """Train what the parent sends, until it is gone."""
    pipe.send(None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        splits = open_data()
        while True:
            pipe.send(_trial(pipe.recv(), splits, pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _PrunedError(Exception):
    """The parent stopped the trial."""


class _Pruning(Reporter):
    """Asks the parent after each epoch whether the trial continues."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def epoch_finished(self, record: dict[str, Any]) -> None:
        """See `Reporter`."""
        self._pipe.send(Epoch(record["epoch"], mean_score(record)))
        if not self._pipe.recv():
            raise _PrunedError


def _trial(task: Task, splits: Mapping[str, Split], pipe: Connection) -> Finished:
    trainer = reason = None
    train, valid = (
        splits[name] if task.streams is None else splits[name].of_streams(task.streams) for name in ("train", "valid")
    )
    try:
        trainer = Trainer(task.settings, train, valid, None)
        trainer.fit(_Pruning(pipe))
    except _PrunedError:
        pass
    except EmiError as error:
        reason = str(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # whatever a head raises, the other trials continue
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}, line {where.lineno})"
    history = trainer.history if trainer is not None else []
    best = max((r for r in history if r["best"]), key=lambda r: r["epoch"], default=None)
    return Finished(
        epochs=len(history),
        best_epoch=best["epoch"] if best else 0,
        best=mean_score(best) if best else None,
        seconds=sum(record["seconds"] for record in history),
        reason=reason,
    )
