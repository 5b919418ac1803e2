"""Progress on the terminal: a moving bar, or plain lines where the output is a file or a log."""

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich import progress as bars
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cache.errors import EmiError
from train_head.errors import refuse
from train_head.reports.progress import clock_time, speed

if TYPE_CHECKING:
    from train_head.sweep.trials import Status


MOMENT = 1.0
"""Seconds in which work that goes over a cache prints nothing."""
EVERY_SECONDS = 60.0
"""Time between plain lines."""


class OutputError(EmiError, OSError):
    """An output file cannot be written."""


def check_writable(*paths: Path | None) -> None:
    """Refuse an output file that cannot be written, before the work is done.

    Raises:
        OutputError: a folder is missing, may not be written, or has the name of the file.
    """
    for path in filter(None, paths):
        refuse(
            (
                not path.parent.is_dir(),
                f"{path} cannot be written: there is no folder {path.parent}; make it, or name another place",
            ),
            (path.is_dir(), f"{path} cannot be written: it is a folder"),
            (
                not os.access(path if path.exists() else path.parent, os.W_OK),
                f"{path} cannot be written: no permission",
            ),
            error=OutputError,
        )


class Progress:
    """Counts clips; shows rate and time left: a bar on a terminal, elsewhere a line at the start, each minute, the end.

    The first line is printed with the first clip. A second round of the same work, which begins at the first clip
    again, is counted anew.

    Args:
        verb: what is done to the clips; "" where `stage` names it.
        waiting: gives the shares of the stages that the work waits for, shown behind the rate.
        after: seconds before which nothing is shown, for work that is often done in a moment.
        stream: where to; standard error by default.
        clock: gives seconds.
    """

    def __init__(
        self,
        verb: str = "",
        waiting: Callable[[], str] | None = None,
        *,
        after: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting, self._after, self._now = waiting, after, clock
        self._stream = sys.stderr if stream is None else stream  # None where a shell has closed it
        self._created = self._now()
        self._open(verb)

    def _open(self, verb: str) -> None:
        self._verb, self._total = verb, 0
        on_terminal = self._stream is not None and self._stream.isatty()
        self._bar: bars.Progress | None = _bar(self._stream, verb) if on_terminal else None
        self._restart()

    def _restart(self) -> None:
        self._started = self._shown = self._now()
        self._done, self._audio, self._begun, self._ended = 0, 0.0, False, False

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Report clips done so far, of how many, and the audio seconds of the one just finished."""
        if done < self._done:
            self._restart()
        self._done, self._total = done, total
        self._audio += seconds if math.isfinite(seconds) else 0.0  # of media that do not say how long they are
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, rate=self._rate())
            self._bar.start()
            return
        if not self._begun and self._elapsed >= self._after:
            self._begun = True
            self._print("1 clip" if total == 1 else f"{total} clips")
        if done >= total:
            self._end(f"{done} of {total} clips took {clock_time(self._elapsed)}")
        elif self._begun and self._now() - self._shown >= EVERY_SECONDS:
            left = self._elapsed / max(1, done) * (total - done)
            self._print(f"{done} of {total} clips, {self._rate()}, {clock_time(left)} left")

    def stage(self, verb: str, done: int, total: int, seconds: float) -> None:
        """Report as `__call__` does, for one of several stages, which are shown one after the other."""
        if verb != self._verb:
            self.close()
            self._open(verb)
        self(done, total, seconds)

    def close(self) -> None:
        """Leave the bar as it is; without one, say where unfinished work stopped."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        else:
            self._end(f"stopped at {self._done} of {self._total} clips after {clock_time(self._elapsed)}")

    def __enter__(self) -> "Progress":
        if self._bar is not None and not self._after:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def took(self) -> float:
        """Seconds since this was made, all stages together."""
        return max(1e-6, self._now() - self._created)

    @property
    def _elapsed(self) -> float:
        return max(1e-6, self._now() - self._started)

    def _end(self, text: str) -> None:
        if self._begun and not self._ended:
            self._print(f"{text}, {self._rate()}")
        self._ended = True

    def _print(self, text: str) -> None:
        self._shown = self._now()
        if self._stream is not None:
            print(f"{self._verb} {text}", file=self._stream, flush=True)

    def _rate(self) -> str:
        rates = [speed(self._done / self._elapsed, "clips")]
        if self._audio:
            rates.append(f"{self._audio / self._elapsed:.0f} x real time")
        if self._waiting:
            rates.append(f"waiting for: {self._waiting()}")
        return ", ".join(rates)


def _bar(stream: TextIO, verb: str) -> bars.Progress:
    rate = bars.TextColumn("{task.fields[rate]}")
    counts = (bars.TextColumn(verb), bars.BarColumn(), bars.MofNCompleteColumn())
    bar = bars.Progress(*counts, rate, bars.TimeRemainingColumn(), console=Console(file=stream))
    bar.add_task("", total=None, rate="")
    return bar


class TrialLines(AbstractContextManager["TrialLines"]):
    """Shows how a sweep proceeds: a table that renews itself on a terminal.

    Elsewhere it prints a line at the start, one per finished trial, one for each minute in which none ended, and one at
    the end.

    Args:
        stream: where to.
        clock: gives seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, clock
        self._live = Live(console=Console(file=stream), auto_refresh=False) if stream.isatty() else None
        self._shown, self._begun, self._over = self._now(), False, False

    def __call__(self, status: "Status") -> None:
        """Report; called after each trial, and now and then."""
        from train_head.sweep.result import ended

        if self._live is not None:
            self._live.start()
        elif not self._begun:
            self._print(f"{status.total} trials" + (f", {status.finished} of them done" if status.finished else ""))
        self._begun = True
        if status.last is not None:
            self._print(_trial_line(status, ended(status.last)))
        elif self._live is None and self._now() - self._shown >= EVERY_SECONDS:
            self._print(_trial_line(status, f"{status.running} running"))
        if self._live is not None:
            self._live.update(_status_table(status), refresh=True)
        elif status.finished >= status.total and not self._over:
            self._over = True
            counts = f"{status.complete} complete, {status.pruned} pruned, {status.failed} failed"
            self._print(f"{status.finished} of {status.total} trials: {counts}, {status.per_minute:.1f} trials/min")

    def close(self) -> None:
        """Leave the table as it is."""
        if self._live is not None:
            self._live.stop()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self, line: str) -> None:
        self._shown = self._now()
        if self._live is not None:
            self._live.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def _trial_line(status: "Status", trial: str) -> str:
    """The trial that has just ended, and how far the sweep is."""
    best = "" if status.best is None else f"  best {status.best:.3f} (trial {status.best_number})"
    left = "" if status.seconds_left is None else f"  {clock_time(status.seconds_left)} left"
    return f"{trial}  [{status.finished}/{status.total}]{best}{left}"


def _status_table(status: "Status") -> Table:
    table = Table("done", "complete", "pruned", "failed", "running", "best", "trials/min", "left")
    best = "" if status.best is None else f"{status.best:.3f} (trial {status.best_number})"
    left = "" if status.seconds_left is None else clock_time(status.seconds_left)
    counts = (status.complete, status.pruned, status.failed, status.running)
    table.add_row(f"{status.finished} of {status.total}", *map(str, counts), best, f"{status.per_minute:.1f}", left)
    return table
