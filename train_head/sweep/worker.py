"""A process that trains one trial after the other on a split that it shares with the others."""

import os
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from optuna import Trial

from cache.container import StrPath
from cache.errors import EmiError
from train_head.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrialData:
    """What trials are trained on; given to each worker process, which opens it for itself.

    Attributes:
        cache: the cache, derived or not.
        files: label CSVs by split, "train" and "valid".
        label_scale: labels are divided by it.
        skip_missing: leave out clips that the cache does not hold.
        shared: folder of the memory map that all workers read.
        group_by: as for `train_head.train.gather_inputs`: the column that names groups is no target.
        clips: so many training clips, drawn with `seed`, are trained on; None takes all.
        seed: of that draw.
    """

    cache: StrPath
    files: Mapping[str, StrPath]
    label_scale: float
    skip_missing: bool
    shared: StrPath
    group_by: str | None
    clips: int | None
    seed: int


@dataclass(frozen=True)
class Epoch:
    """An epoch of a trial is done; the worker waits to hear whether to go on."""

    number: int
    pearson: float | None


@dataclass(frozen=True)
class Finished:
    """A trial is over: after its last epoch, pruned, or failed for a reason."""

    epochs: int
    best_epoch: int
    best: float | None
    seconds: float
    reason: str | None = None


@dataclass
class Running:
    """A trial in a worker.

    Attributes:
        trial: of the study.
        reported: the last epoch that was reported before the trial was cut off; 0 where it was not.
        pruned: whether the worker was told to stop.
    """

    trial: Trial
    reported: int
    pruned: bool = False


@dataclass
class Worker:
    """The parent's end of a process.

    Attributes:
        process: the child.
        pipe: settings go in, `Epoch` and `Finished` come out, True or False answers an epoch.
        running: what it trains; None while it is idle.
    """

    process: BaseProcess
    pipe: Connection
    running: "Running | None" = None

    @classmethod
    def start(cls, data: TrialData, threads: int) -> "Worker":
        """Start a process. It is spawned, not forked: torch's threads do not survive a fork."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, data, threads), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def stop(self) -> None:
        """End the process at once; what it trained is given up."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def died_of(self) -> str:
        """How the process ended, in words."""
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            hint = ", which is what the kernel does where memory runs out" if code == -signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-code).name}{hint}"
        return f"its process ended with exit code {code}"


def _work(pipe: Connection, data: TrialData, threads: int) -> None:
    """The child: train what comes in until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from train_head.sweep.data import open_splits

    torch.set_num_threads(threads)
    try:
        splits = open_splits(data)
        while True:
            settings: TrainSettings = pipe.recv()
            pipe.send(_trial(settings, splits, pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _PrunedError(Exception):
    """The parent said so."""


def _trial(settings: TrainSettings, splits: Mapping[str, Any], pipe: Connection) -> Finished:
    from train_head.trainer import Trainer

    trainer = None

    def ask(record: dict[str, Any]) -> None:
        pipe.send(Epoch(record["epoch"], record["valid_mean_pearson"]))
        if not pipe.recv():
            raise _PrunedError

    reason = None
    try:
        trainer = Trainer(settings, splits["train"], splits["valid"], None)
        trainer.fit(ask)
    except _PrunedError:
        pass
    except EmiError as error:
        reason = str(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # whatever a head raises, the other trials go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}, line {where.lineno})"
    history = trainer.history if trainer is not None else []
    best = max((r for r in history if r["best"]), key=lambda r: r["epoch"], default=None)
    return Finished(
        epochs=len(history),
        best_epoch=best["epoch"] if best else 0,
        best=best["valid_mean_pearson"] if best else None,
        seconds=sum(record["seconds"] for record in history),
        reason=reason,
    )
