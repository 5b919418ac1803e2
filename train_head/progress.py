"""What a training says while it runs: one line per epoch."""

from collections.abc import Callable
from typing import Any


class EpochLines:
    """Says how each epoch went and how long the rest will take; give it to a training as `on_epoch`.

    Args:
        epochs: how many there will be.
        say: prints one line.
    """

    def __init__(self, epochs: int, say: Callable[[str], object]) -> None:
        self._epochs, self._say = epochs, say
        self._seconds, self._done = 0.0, 0

    def __call__(self, record: dict[str, Any]) -> None:
        """Report one epoch's record."""
        self._seconds, self._done = self._seconds + record["seconds"], self._done + 1
        left = self._seconds / self._done * (self._epochs - record["epoch"])
        self._say(epoch_line(record, self._epochs, left))


def epoch_line(record: dict[str, Any], epochs: int, seconds_left: float) -> str:
    """One epoch in words; `*` behind the Pearson says that it is the best so far.

    Args:
        record: of the epoch, as in metrics.jsonl.
        epochs: how many there will be.
        seconds_left: until the last is done.
    """
    parts = [f"epoch {record['epoch']:>3}/{epochs}", f"loss {record['train_loss']:.4f}"]
    if record["valid_pearson"]:
        mean = record["valid_mean_pearson"]
        parts.append(f"pearson {'undef' if mean is None else f'{mean:.3f}'}{'*' if record['best'] else ' '}")
    parts += [f"{record['seconds']:.1f} s", f"{record['frames_per_second']:,} frames/s", f"{_clock(seconds_left)} left"]
    if record["undefined"]:
        parts.append(f"(undefined: {', '.join(record['undefined'])})")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
