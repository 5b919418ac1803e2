"""Progress on the terminal: a moving bar, or plain lines where the output is a file or a log."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from cache.errors import EmiError

if TYPE_CHECKING:
    from train_head.sweep import Status


class OutputError(EmiError, OSError):
    """A file that is to be written cannot be."""


def check_writable(*paths: Path | None) -> None:
    """Refuse a place to write to that there is not, before the work is done.

    Raises:
        OutputError: a folder is missing, may not be written, or has the name of the file.
    """
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: there is no folder {path.parent}; make it, or name another place"
            )
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OutputError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no permission'}")


class Progress:
    """Counts clips; shows rate and time left.

    Args:
        total: clips to handle, or None until the first call says it.
        verb: what is done to them.
        waiting: gives the shares of the stages that the work waits for, shown behind the rate.
    """

    EVERY_SECONDS = 10.0
    """Time between plain lines."""

    def __init__(self, total: int | None, verb: str, waiting: Callable[[], str] | None = None) -> None:
        self._total, self._verb, self._waiting = total, verb, waiting
        self._started = time.monotonic()
        self._shown = self._started - self.EVERY_SECONDS + 1.0  # the first line comes after a second
        self._audio = 0.0
        self._bar = self._make_bar() if sys.stderr.isatty() else None

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Report clips done so far, of how many, and the audio seconds of the one just finished."""
        self._audio += seconds
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=done, total=total, rate=self._rate(done))
        elif time.monotonic() - self._shown >= self.EVERY_SECONDS:
            self._shown = time.monotonic()
            left = (self._shown - self._started) / max(1, done) * (total - done)
            print(
                f"{self._verb} {done} of {total} clips, {self._rate(done)}, {_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def _rate(self, done: int) -> str:
        elapsed = max(1e-6, time.monotonic() - self._started)
        rate = f"{done / elapsed:.1f} clips/s, {self._audio / elapsed:.0f} x real time"
        return f"{rate}, waiting for: {self._waiting()}" if self._waiting else rate

    def _make_bar(self):  # type: ignore[no-untyped-def]
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn(self._verb),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        return bar, bar.add_task("", total=self._total, rate="")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrialLines:
    """How a sweep goes: a table that renews itself on a terminal, elsewhere one line per finished trial.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live = stream, None
        if stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=stream), auto_refresh=False)
            self._live.start()

    def __call__(self, status: "Status") -> None:
        """Report; called after each trial, and now and then."""
        from train_head.sweep.result import ended

        if status.last is not None:
            self._say(_trial_line(status, ended(status.last)))
        if self._live is not None:
            self._live.update(_status_table(status), refresh=True)

    def close(self) -> None:
        """Leave the table as it is."""
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> "TrialLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def _trial_line(status: "Status", trial: str) -> str:
    """The trial that has just ended, and how far the sweep is."""
    best = "" if status.best is None else f"  best {status.best:.3f} (trial {status.best_number})"
    left = "" if status.seconds_left is None else f"  {_clock(status.seconds_left)} left"
    return f"{trial}  [{status.finished}/{status.total}]{best}{left}"


def _status_table(status: "Status"):  # type: ignore[no-untyped-def]
    from rich.table import Table

    table = Table("done", "complete", "pruned", "failed", "running", "best", "trials/min", "left")
    best = "" if status.best is None else f"{status.best:.3f} (trial {status.best_number})"
    left = "" if status.seconds_left is None else _clock(status.seconds_left)
    counts = (status.complete, status.pruned, status.failed, status.running)
    table.add_row(f"{status.finished} of {status.total}", *map(str, counts), best, f"{status.per_minute:.1f}", left)
    return table
