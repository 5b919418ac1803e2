"""Windows over the label rows of clips: training samples of equal length, and predictions put together again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train_head.errors import TrainSettingsError

MEAN, VALID = "mean", "valid"
OVERLAPS = (MEAN, VALID)


@dataclass(frozen=True)
class Window:
    """A run of label rows of one clip.

    Attributes:
        clip: number of the clip.
        first: its first row, from 0 at the clip's beginning.
        rows: number of rows.
        of: rows of the clip.
    """

    clip: int
    first: int
    rows: int
    of: int

    @property
    def is_first(self) -> bool:
        """Whether it begins where the clip begins."""
        return self.first == 0

    @property
    def is_last(self) -> bool:
        """Whether it ends where the clip ends."""
        return self.first + self.rows == self.of


def make_windows(lengths: Sequence[int], window: int, hop: int = 0) -> list[Window]:
    """Cut clips into windows.

    Args:
        lengths: label rows of each clip; those without any have no window.
        window: rows of a window; 0 takes whole clips. A shorter clip is one window.
        hop: rows from one window to the next; 0 takes `window`. The last window of a clip ends with it, and overlaps
            the one before where the hops do not come out even.
    """
    found = []
    for clip, rows in enumerate(lengths):
        if not rows:
            continue
        if not window or rows <= window:
            found.append(Window(clip, 0, rows, rows))
            continue
        starts = [*range(0, rows - window, hop or window), rows - window]
        found += [Window(clip, first, window, rows) for first in starts]
    return found


def kept_rows(window: Window, reach: tuple[int, int] | None, overlap: str) -> slice:
    """Return the rows of a window whose prediction counts, from 0 at the window's beginning.

    Args:
        window: the window.
        reach: rows before and after its own that a prediction depends on; None for the whole clip.
        overlap: "mean" keeps all rows; "valid" those that saw all that they reach, as far as the clip has it.

    Raises:
        TrainSettingsError: "valid", and a prediction depends on the whole clip.
    """
    if overlap == MEAN:
        return slice(0, window.rows)
    if reach is None:
        raise TrainSettingsError(
            "--overlap valid drops the rows at a window's ends that did not see all that they depend on, and with this "
            "head or fusion a row depends on the whole clip; take a tcn, alone or with the fusion concat or late, or "
            "--overlap mean"
        )
    start = 0 if window.is_first else min(reach[0], window.rows)
    return slice(start, max(start, window.rows - (0 if window.is_last else reach[1])))


def check_windows(window: int, hop: int, reach: tuple[int, int] | None, overlap: str) -> None:
    """Refuse windows that leave rows of a long clip without a prediction.

    Args:
        window: label rows of a window; 0 takes whole clips.
        hop: label rows from one window to the next; 0 takes `window`.
        reach: as for `kept_rows`.
        overlap: as for `kept_rows`.

    Raises:
        TrainSettingsError: says which hop or window would do.
    """
    rows = kept_rows(Window(0, 1, window, window + 2), reach, overlap)  # of one that is neither first nor last
    kept, step = rows.stop - rows.start, hop or window
    if not window or kept >= step:
        return
    if overlap == MEAN:
        raise TrainSettingsError(
            f"a hop of {hop} label rows between windows of {window} leaves rows without a prediction; give a --hop of "
            f"{window} or less"
        )
    advice = f"give a --hop of {kept} or less, or a longer --window" if kept else "give a longer --window"
    raise TrainSettingsError(
        f"--overlap valid keeps {kept} of the {window} rows of a window, those that saw all that they depend on, and "
        f"windows begin every {step} rows: some rows would have no prediction; {advice}"
    )


def join_windows(
    windows: Sequence[Window], values: Iterator[NDArray[np.floating]], kept: Sequence[slice], lengths: Sequence[int]
) -> NDArray[np.float32]:
    """Average the values of windows over the rows where they overlap.

    Args:
        windows: in any order.
        values: (rows, targets) per window, in the same order.
        kept: rows of each window that count, from `kept_rows`.
        lengths: label rows of each clip.

    Returns:
        (label rows of all clips, targets) float32.

    Raises:
        TrainSettingsError: some row is in no window's kept rows; says which hop would do.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total: NDArray[np.float64] | None = None
    count = np.zeros(offsets[-1], np.int64)
    for window, part, rows in zip(windows, values, kept, strict=True):
        if total is None:
            total = np.zeros((len(count), part.shape[1]))
        first = int(offsets[window.clip]) + window.first
        place = slice(first + rows.start, first + rows.stop)
        total[place] += part[rows]
        count[place] += 1
    if total is None:
        return np.empty((0, 0), np.float32)
    if not count.all():
        longest = max((rows.stop - rows.start for window, rows in zip(windows, kept, strict=True)), default=0)
        raise TrainSettingsError(
            f"{int((count == 0).sum())} label rows are in no window that saw all that they depend on; make the hop "
            f"{max(1, longest)} rows or less, or the window longer"
        )
    return (total / count[:, None]).astype(np.float32)
