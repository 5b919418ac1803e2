"""Progress on the terminal: a moving bar, or plain lines where the output is a file or a log."""

import sys
import time
from collections.abc import Callable
from types import TracebackType


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
