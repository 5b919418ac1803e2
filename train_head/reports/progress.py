"""What a training prints while it runs: one line per epoch, and in long epochs one a minute."""

import time
from collections.abc import Callable
from typing import Any

from train_head.reports.tables import cell
from train_head.targets import mean_score, recorded_score, target_scores


class EpochLines:
    """Prints how each epoch went and how long the rest will take; call it with each epoch's record.

    During an epoch of more than a minute it prints the progress each minute.

    Args:
        epochs: number of epochs.
        say: prints one line.
        clock: gives seconds.
    """

    EVERY_SECONDS = 60.0

    def __init__(self, epochs: int, say: Callable[[str], object], clock: Callable[[], float] | None = None) -> None:
        self._epochs, self._say, self._now = epochs, say, clock or time.monotonic
        self._seconds, self._done = 0.0, 0
        self._shown, self._stage, self._began = self._now(), ("", 0), (self._now(), 0)

    def __call__(self, record: dict[str, Any]) -> None:
        """Report one epoch's record."""
        self._seconds, self._done = self._seconds + record["seconds"], self._done + 1
        left = self._seconds / self._done * (self._epochs - record["epoch"])
        self._shown = self._now()
        self._say(epoch_line(record, self._epochs, left))

    def on_step(self, epoch: int, what: str, done: int, total: int) -> None:
        """Report a step within an epoch, of training or validation; see `train_head.training.loop.Reporter`.

        Args:
            epoch: its number, from 1; 0 outside of epochs.
            what: "training" or "validating".
            done: number of steps done.
            total: number of steps.
        """
        if self._stage != (what, epoch):  # the first step of these that is seen, which a resumed epoch may begin with
            self._stage, self._began = (what, epoch), (self._now(), done)
        if self._now() - self._shown < self.EVERY_SECONDS:
            return
        self._shown = self._now()
        since, first = self._began
        rate = (done - first) / max(1e-9, self._shown - since)
        left = f", {speed(rate, 'steps')}, {clock_time((total - done) / rate)} left of it" if rate else ""
        which = f"epoch {epoch:>3}/{self._epochs}  " if epoch else ""
        self._say(f"{which}{what}: {done} of {total} steps{left}")


def epoch_line(record: dict[str, Any], epochs: int, seconds_left: float) -> str:
    """Return one epoch as a line; `*` behind the score marks the best so far.

    Args:
        record: of the epoch, as in metrics.jsonl.
        epochs: number of epochs.
        seconds_left: until the last is done.
    """
    parts = [f"epoch {record['epoch']:>3}/{epochs}", f"loss {record['train_loss']:.4f}"]
    if target_scores(record):
        parts.append(f"{recorded_score(record)} {cell(mean_score(record))}{'*' if record['best'] else ' '}")
    parts += [
        f"{record['seconds']:.1f} s",
        f"{record['frames_per_second']:,} frames/s",
        f"{clock_time(seconds_left)} left",
    ]
    if record["undefined"]:
        parts.append(f"(undefined: {', '.join(record['undefined'])})")
    return "  ".join(parts)


def speed(rate: float, what: str) -> str:
    """Return a rate per second, or per minute where it is below one per second."""
    return f"{rate:.1f} {what}/s" if rate >= 1 else f"{60 * rate:.1f} {what}/min"


def clock_time(seconds: float) -> str:
    """Return seconds as 0:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
