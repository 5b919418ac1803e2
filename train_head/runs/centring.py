"""CCC centring: the mean of several predictions, at the level of those that agree most with the others.

Each prediction of a clip is moved to a common level before the mean. The level is the mean of the predictions' own
levels, each weighted by its mean CCC with the other predictions. This is how gold standards are made of several
annotators (AVEC 2016), and how systems for valence and arousal join their folds.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def centred_mean(values: Values, weights: Sequence[float], lengths: Sequence[int]) -> Values:
    """Average predictions per label row after CCC centring, for each clip and target.

    Args:
        values: (runs, label rows, targets).
        weights: of each run in the mean, which sum to 1; they do not count in the level.
        lengths: label rows of each clip.

    Returns:
        (label rows, targets). Where no two predictions of a clip agree, it is the plain mean.
    """
    mean: Values = np.average(values, axis=0, weights=weights)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    for (first, last), k in itertools.product(itertools.pairwise(offsets), range(values.shape[2])):
        part = values[:, first:last, k]
        agreement = agreements(part) if last > first else np.zeros(0)
        if agreement.sum() > 0:
            levels = part.mean(axis=1)
            mean[first:last, k] += np.average(levels, weights=agreement) - np.average(levels, weights=weights)
    return mean


def agreements(part: Values) -> Values:
    """(runs,) mean CCC of each of (runs, rows) predictions with the others, 0 where it is negative or undefined."""
    levels = part.mean(axis=1, keepdims=True)
    deviations = part - levels
    covariance = deviations @ deviations.T / part.shape[1]
    variance = np.diag(covariance)[:, None]
    spread = variance + variance.T + (levels - levels.T) ** 2
    ccc = np.divide(2 * covariance, spread, out=np.zeros_like(spread), where=spread > 0)
    found: Values = np.maximum((ccc.sum(axis=1) - np.diag(ccc)) / (len(part) - 1), 0.0)
    return found
