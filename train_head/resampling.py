"""Bootstrap resamples of correlations as matrix products.

A resample never copies clips: it is a row of counts, and all sums that a correlation needs are one matrix product of
the counts with the clips' moments.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train_head.errors import LabelError
from train_head.metrics import pearson

Values = NDArray[np.float64]
COUNTS_AT_ONCE = 1_000_000
"""Counts in memory at a time: 8 MB."""
FLAT = 1e-8
"""Variance, of values scaled to at most 1, below which a correlation is computed again from the drawn clips."""


def draws(units: int, resamples: int, seed: int) -> Iterator[Values]:
    """Yield how often each of `units` is drawn in each resample, as (some resamples, units) until all are drawn."""
    rng = np.random.default_rng(seed)
    step = max(1, COUNTS_AT_ONCE // units)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        drawn = rng.integers(units, size=(size, units)) + np.arange(size)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def units_of(clips: int, groups: Sequence[str] | None) -> tuple[NDArray[np.intp], int]:
    """What is resampled: the number of each clip's unit, (clips,), and how many units there are.

    Args:
        clips: how many.
        groups: (clips,) names of groups that are drawn as wholes; None draws single clips.

    Raises:
        ValueError: not one group per clip.
        LabelError: all clips are of one group.
    """
    if groups is None:
        return np.arange(clips), clips
    if len(groups) != clips:
        raise ValueError(f"{len(groups)} groups for {clips} clips")
    names, units = np.unique(np.array(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise LabelError(f"all {clips} clips are of one group, {groups[0]!r}, and an interval needs several groups")
    return units, len(names)


def correlations(
    predicted: Sequence[ArrayLike],
    target: ArrayLike,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Values:
    """Pearson of several predictions in the same resamples.

    Args:
        predicted: each (clips, targets).
        target: (clips, targets).
        groups: as for `units_of`.
        resamples: how many.
        seed: of the draws.

    Returns:
        (resamples, predictions, targets), NaN where a column is constant in a resample.

    Raises:
        ValueError: no resamples, or not one group per clip.
        LabelError: all clips are of one group.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be above 0, got {resamples}")
    raw_p, raw_t = np.stack([np.asarray(p, np.float64) for p in predicted]), np.asarray(target, np.float64)
    p, t = _scaled(raw_p), _scaled(raw_t)  # (predictions, clips, targets), (clips, targets)
    many, clips, width = p.shape
    units, count = units_of(clips, groups)
    moments = np.hstack([np.ones((clips, 1)), t, t * t, *p, *(p * p), *(p * t)])
    per_unit = np.zeros((count, moments.shape[1]))
    np.add.at(per_unit, units, moments)
    constant = (np.ptp(raw_p, axis=1) == 0) | (np.ptp(raw_t, axis=0) == 0)  # (predictions, targets)
    parts: list[Values] = []
    for counts in draws(count, resamples, seed):
        sums = counts @ per_unit
        means = (sums[:, 1:] / sums[:, :1]).reshape(len(counts), 2 + 3 * many, width)
        t1, t2 = means[:, :1], means[:, 1:2]
        p1, p2, pt = np.split(means[:, 2:], 3, axis=1)
        spread_t, spread_p = t2 - t1 * t1, p2 - p1 * p1
        flat = (spread_t < FLAT) | (spread_p < FLAT)
        r = np.clip((pt - p1 * t1) / np.sqrt(np.where(flat, 1.0, spread_t * spread_p)), -1.0, 1.0)
        r[:, constant] = np.nan
        for i, j, k in np.argwhere(flat & ~constant):
            rows = np.repeat(np.arange(clips), counts[i, units].astype(np.intp))
            exact = pearson(raw_p[j, rows, k], raw_t[rows, k])
            r[i, j, k] = np.nan if exact is None else exact
        parts.append(r)
    return np.concatenate(parts)


def _scaled(values: Values) -> Values:
    """Centred over the clips and divided by the largest, so that squares neither cancel nor underflow."""
    centred = values - values.mean(-2, keepdims=True)
    peak = np.abs(centred).max(-2, keepdims=True)
    scaled: Values = centred / np.where(peak > 0, peak, 1.0)
    return scaled
