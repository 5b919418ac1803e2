"""The kinds of smoothing: a moving mean or median of one column, whose windows end with the column."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Column = NDArray[np.float64]
NO_SMOOTHING = "none"


def moving_mean(values: Column, half: int) -> Column:
    """Return the mean of each row and of the `half` rows on either side, as far as they are there."""
    middle = values.mean() if len(values) else 0.0  # sums stay small
    sums = np.concatenate([[0.0], np.cumsum(values - middle)])
    rows = np.arange(len(values))
    first, last = np.maximum(rows - half, 0), np.minimum(rows + half + 1, len(values))
    found: Column = middle + (sums[last] - sums[first]) / (last - first)
    return found


def moving_median(values: Column, half: int) -> Column:
    """Return the median of the same rows as `moving_mean`."""
    inner = range(half, len(values) - half)
    found = np.empty_like(values)
    if inner:
        found[half : len(values) - half] = np.median(sliding_window_view(values, 2 * half + 1), axis=1)
    for row in (row for row in range(len(values)) if row not in inner):
        found[row] = np.median(values[max(0, row - half) : row + half + 1])
    return found


KINDS: Mapping[str, Callable[[Column, int], Column]] = {"mean": moving_mean, "median": moving_median}
