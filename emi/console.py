"""Progress on the terminal: a moving bar, or plain lines where the output is a file or a log."""

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from cache.errors import EmiError
from train_head.reports.progress import clock_time, speed

if TYPE_CHECKING:
    from rich.live import Live

    from train_head.sweep.trials import Status


MOMENT = 1.0
"""Seconds in which work that goes over a cache says nothing."""


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
    """Counts clips; shows rate and time left: a bar on a terminal, elsewhere a line at the start, each minute, the end.

    The first line comes with the first clip. A second round of the same work, which begins at the first clip again, is
    counted anew.

    Args:
        total: clips to handle, or None until the first call says it.
        verb: what is done to them.
        waiting: gives the shares of the stages that the work waits for, shown behind the rate.
        after: seconds before which nothing is said, for work that is often done in a moment.
        stream: where to; standard error by default.
        clock: gives seconds.
    """

    EVERY_SECONDS = 60.0
    """Time between plain lines."""

    def __init__(
        self,
        total: int | None,
        verb: str,
        waiting: Callable[[], str] | None = None,
        *,
        after: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._after = after
        self._total, self._verb, self._waiting, self._now = total, verb, waiting, clock or time.monotonic
        self._stream = sys.stderr if stream is None else stream  # None where a shell has closed it
        self._done, self._audio, self._begun, self._ended = 0, 0.0, False, False
        self._started = self._shown = self._now()
        self._bar = self._make_bar() if self._stream is not None and self._stream.isatty() else None

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Report clips done so far, of how many, and the audio seconds of the one just finished."""
        if done < self._done:
            self._started, self._audio, self._begun, self._ended = self._now(), 0.0, False, False
        self._done, self._total = done, total
        self._audio += seconds if math.isfinite(seconds) else 0.0  # of media that do not say how long they are
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=done, total=total, rate=self._rate())
            return
        if not self._begun and self._elapsed >= self._after:
            self._begun = True
            self._say(f"{total} clips")
        if done >= total:
            self._end(f"{done} of {total} clips took {clock_time(self._elapsed)}")
        elif self._begun and self._now() - self._shown >= self.EVERY_SECONDS:
            left = self._elapsed / max(1, done) * (total - done)
            self._say(f"{done} of {total} clips, {self._rate()}, {clock_time(left)} left")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        elif not self._ended:
            self._end(f"stopped at {self._done} of {self._total} clips after {clock_time(self._elapsed)}")

    @property
    def _elapsed(self) -> float:
        return max(1e-6, self._now() - self._started)

    def _end(self, text: str) -> None:
        if self._begun and not self._ended:
            self._say(f"{text}, {self._rate()}")
        self._ended = True

    def _say(self, text: str) -> None:
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
            console=Console(file=self._stream),
        )
        return bar, bar.add_task("", total=self._total, rate="")


class Stages:
    """A `Progress` for each stage of some work, which names it; one is shown at a time, and none of a moment."""

    def __init__(self) -> None:
        self._stage = ""
        self._progress: Progress | None = None

    def __call__(self, stage: str, done: int, total: int, seconds: float) -> None:
        """Report clips done so far in a stage; see `Progress`."""
        if stage != self._stage or self._progress is None:
            self.close()
            self._stage, self._progress = stage, Progress(total, stage, after=MOMENT).__enter__()
        self._progress(done, total, seconds)

    def close(self) -> None:
        """Leave the last one as it is."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
        self._progress = None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TrialLines:
    """How a sweep goes: a table that renews itself on a terminal.

    Elsewhere a line at the start, one per finished trial, one for each minute in which none ended, and one at the end.

    Args:
        stream: where to.
        clock: gives seconds.
    """

    EVERY_SECONDS = 60.0
    """Time without a line."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] | None = None) -> None:
        self._stream, self._now = stream, clock or time.monotonic
        self._live: Live | None = None
        self._shown, self._begun, self._over = self._now(), False, False

    def __call__(self, status: "Status") -> None:
        """Report; called after each trial, and now and then."""
        from train_head.sweep.result import ended

        if not self._begun:
            self._begin(status)
        if status.last is not None:
            self._say(_trial_line(status, ended(status.last)))
        elif self._live is None and self._now() - self._shown >= self.EVERY_SECONDS:
            self._say(_trial_line(status, f"{status.running} running"))
        if self._live is not None:
            self._live.update(_status_table(status), refresh=True)
        elif status.finished >= status.total and not self._over:
            self._over = True
            counts = f"{status.complete} complete, {status.pruned} pruned, {status.failed} failed"
            self._say(f"{status.finished} of {status.total} trials: {counts}, {status.per_minute:.1f} trials/min")

    def _begin(self, status: "Status") -> None:
        self._begun = True
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), auto_refresh=False)
            self._live.start()
        else:
            before = f", {status.finished} of them done" if status.finished else ""
            self._say(f"{status.total} trials{before}")

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


def _status_table(status: "Status"):  # type: ignore[no-untyped-def]
    from rich.table import Table

    table = Table("done", "complete", "pruned", "failed", "running", "best", "trials/min", "left")
    best = "" if status.best is None else f"{status.best:.3f} (trial {status.best_number})"
    left = "" if status.seconds_left is None else clock_time(status.seconds_left)
    counts = (status.complete, status.pruned, status.failed, status.running)
    table.add_row(f"{status.finished} of {status.total}", *map(str, counts), best, f"{status.per_minute:.1f}", left)
    return table
