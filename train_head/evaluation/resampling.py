"""Compute metrics of many resamples at once, as matrix products.

Pearson, CCC and the mean absolute error all follow from sums over clips. The contribution of each unit, a clip or a
whole group, to the sums is computed once. A bootstrap resample is then a row of counts, an exchange of two runs'
predictions a row of zeros and ones, and one matrix product gives the sums of all of them.

A NaN label is missing and contributes nothing.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train_head.errors import LabelError, unknown
from train_head.evaluation.metrics import FEWEST_CLIPS, METRICS, concordance, pearson

Values = NDArray[np.float64]
NUMBERS_AT_ONCE = 1_000_000
"""Counts or signs in memory at a time (8 MB)."""
FLAT = 1e-8
"""Variance of values scaled to [-1, 1] below which a metric is recomputed from the clips, because sums are rounded."""
EXACT_UNITS = 14
"""Units up to which all exchanges are tried: 8,192, because the other half only flips the sign of the difference."""


def draws(units: int, resamples: int, seed: int) -> Iterator[Values]:
    """Yield how often each unit is drawn in each resample, in blocks of shape (resamples, units).

    Args:
        units: number of clips or groups.
        resamples: number of resamples.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    step = max(1, NUMBERS_AT_ONCE // units)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        drawn = rng.integers(units, size=(size, units)) + np.arange(size)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def exchanges(units: int, number: int, seed: int) -> Iterator[Values]:
    """Yield which units are exchanged, 0 or 1, in blocks of shape (exchanges, units); the first row exchanges none.

    Up to `EXACT_UNITS` units every exchange comes once, up to exchanging all units. With more units `number` random
    ones are drawn.

    Args:
        units: number of clips or groups.
        number: exchanges to draw if there are more than `EXACT_UNITS` units.
        seed: of the draws.
    """
    if units <= EXACT_UNITS:
        bits = (np.arange(2 ** (units - 1))[:, None] >> np.arange(units - 1)) & 1
        yield np.hstack([np.zeros((len(bits), 1)), bits])
        return
    yield np.zeros((1, units))
    rng = np.random.default_rng(seed)
    step = max(1, NUMBERS_AT_ONCE // units)
    for first in range(0, number, step):
        yield rng.integers(2, size=(min(step, number - first), units)).astype(np.float64)


def units_of(clips: int, groups: Sequence[str] | None) -> tuple[NDArray[np.intp], int]:
    """Return the (clips,) index of each clip's unit, and the number of units.

    Args:
        clips: number of clips.
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
        raise LabelError(f"all {clips} clips are of one group, {groups[0]!r}; an interval needs at least two groups")
    return units, len(names)


def resampled(
    predicted: Sequence[ArrayLike],
    target: ArrayLike,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    metric: str = "pearson",
) -> Values:
    """Compute a metric of several predictions in the same bootstrap resamples.

    Args:
        predicted: each (clips, targets).
        target: (clips, targets); NaN is a missing label.
        groups: as for `units_of`.
        resamples: number of resamples.
        seed: of the draws.
        metric: "pearson", "ccc" or "mae".

    Returns:
        (resamples, predictions, targets), NaN where the metric is undefined in a resample.

    Raises:
        ValueError: no resamples, or not one group per clip.
        LabelError: all clips are of one group.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be above 0, got {resamples}")
    p, t = np.stack([np.asarray(p, np.float64) for p in predicted]), np.asarray(target, np.float64)
    units, count = units_of(len(t), groups)
    sums = Sums(p, t, units, count, metric)
    parts: list[Values] = []
    for counts in draws(count, resamples, seed):
        values, doubtful = sums.values(counts @ sums.per_unit)
        for i, j, k in np.argwhere(doubtful):
            rows = np.repeat(np.arange(len(t)), counts[i, units].astype(np.intp))
            values[i, j, k] = _exact(metric, p[j, rows, k], t[rows, k])
        parts.append(values)
    return np.concatenate(parts)


def exchanged(
    a: ArrayLike,
    b: ArrayLike,
    target: ArrayLike,
    groups: Sequence[str] | None = None,
    number: int = 2000,
    seed: int = 0,
    metric: str = "pearson",
) -> Values:
    """Compute the difference of a metric between two predictions after exchanging them within some of the units.

    Pearson ignores the level and scale of predictions. So that a mixture of two predictions ignores them too, each is
    first standardised to mean 0 and standard deviation 1 per target, over the labelled clips.

    Args:
        a: (clips, targets).
        b: (clips, targets).
        target: (clips, targets); NaN is a missing label.
        groups: as for `units_of`.
        number: exchanges to draw if there are more than `EXACT_UNITS` units.
        seed: of the draws.
        metric: "pearson", "ccc" or "mae".

    Returns:
        (exchanges, targets) first minus second, NaN where the metric is undefined for one of them. The first row
        exchanges nothing.

    Raises:
        ValueError, LabelError: as `units_of`.
    """
    p, t = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)]), np.asarray(target, np.float64)
    if metric == "pearson":
        p = _standardised(p, ~np.isnan(t))
    units, count = units_of(len(t), groups)
    sums = Sums(p, t, units, count, metric, alike=True)
    total, change = sums.per_unit.sum(0), sums.exchanged() - sums.per_unit
    parts: list[Values] = []
    for chosen in exchanges(count, number, seed):
        values, doubtful = sums.values(total + chosen @ change)
        for i, j, k in np.argwhere(doubtful):
            column = np.where(chosen[i, units] == 1, p[1 - j, :, k], p[j, :, k])
            values[i, j, k] = _exact(metric, column, t[:, k])
        parts.append(values[:, 0] - values[:, 1])
    return np.concatenate(parts)


class Sums:
    """Contributions of each unit to the sums that a metric needs.

    Args:
        p: (predictions, clips, targets).
        t: (clips, targets); NaN is a missing label.
        units: (clips,) index of each clip's unit.
        count: number of units.
        metric: "pearson", "ccc" or "mae".
        alike: whether all predictions have one scale.

    Attributes:
        metric: "pearson", "ccc" or "mae".
        per_unit: (units, columns). First the labelled clips: one column if no label is missing, else one per target.
            Then blocks with one column per target. For "mae" these are the absolute errors of each prediction. For the
            others they are t, t², and p, p² and pt of each prediction, all scaled.
        weights: number of columns of labelled clips.
        undefined: (predictions, targets), whether a column is constant or has too few labels over all clips.
        centre, peak: (predictions + 1, targets) of the predictions, then the labels: a scaled value is
            (value - centre) / peak.
    """

    def __init__(
        self, p: Values, t: Values, units: NDArray[np.intp], count: int, metric: str, *, alike: bool = False
    ) -> None:
        if metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
        known, both = ~np.isnan(t), np.concatenate([p, t[None]])
        weights = np.ones((len(t), 1)) if known.all() else known.astype(np.float64)
        self.metric, self.weights = metric, weights.shape[1]
        self.centre, self.peak = _scale(both, known, alike)
        if metric == "mae":
            columns = [weights, *np.where(known, np.abs(p - t), 0.0)]
            self.undefined = np.zeros((len(p), t.shape[1]), bool)
        else:
            *ps, ts = np.where(known, (both - self.centre[:, None]) / self.peak[:, None], 0.0)
            columns = [weights, ts, ts * ts, *ps, *(x * x for x in ps), *(x * ts for x in ps)]
            self.undefined = _constant(p, known) | _constant(t[None], known) | (known.sum(0) < FEWEST_CLIPS)
        rows = np.hstack(columns)
        self.per_unit = np.zeros((count, rows.shape[1]))
        np.add.at(self.per_unit, units, rows)

    def exchanged(self) -> Values:
        """Return the sums with the predictions in reverse order."""
        first = self.weights + (0 if self.metric == "mae" else 2 * self.undefined.shape[1])
        blocks = self.per_unit[:, first:].reshape(len(self.per_unit), -1, *self.undefined.shape)[:, :, ::-1]
        return np.hstack([self.per_unit[:, :first], blocks.reshape(len(self.per_unit), -1)])

    def values(self, totals: Values) -> tuple[Values, NDArray[np.bool_]]:
        """Compute the metric from (resamples, columns) sums.

        Returns:
            (resamples, predictions, targets), NaN where undefined; and a mask of the same shape, True where a column is
            so nearly constant that the metric must be recomputed from the clips.
        """
        n = totals[:, None, : self.weights]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = totals[:, self.weights :].reshape(len(totals), -1, self.undefined.shape[1]) / n
        if self.metric == "mae":
            return means, np.zeros(means.shape, bool)
        t1, t2 = means[:, :1], means[:, 1:2]
        p1, p2, pt = np.split(means[:, 2:], 3, axis=1)
        spread_t, spread_p, shared = t2 - t1 * t1, p2 - p1 * p1, pt - p1 * t1
        flat = (spread_t < FLAT) | (spread_p < FLAT)
        if self.metric == "pearson":
            found = np.clip(shared / np.sqrt(np.where(flat, 1.0, spread_t * spread_p)), -1.0, 1.0)
        else:
            unit = np.maximum(self.peak[:-1], self.peak[-1])
            a, b = self.peak[:-1] / unit, self.peak[-1] / unit
            apart = p1 * a - t1 * b + (self.centre[:-1] - self.centre[-1]) / unit
            found = 2 * shared * a * b / np.where(flat, 1.0, spread_p * a * a + spread_t * b * b + apart * apart)
        undefined = np.broadcast_to(self.undefined | (n < FEWEST_CLIPS), found.shape)
        found[undefined] = np.nan
        return found, flat & ~undefined


def _exact(metric: str, predicted: Values, target: Values) -> float:
    value = {"pearson": pearson, "ccc": concordance}[metric](predicted, target)
    return np.nan if value is None else value


def _scale(values: Values, known: NDArray[np.bool_], alike: bool) -> tuple[Values, Values]:
    """Return the mean over the labelled clips and the largest distance from it, of each (clips, targets) array.

    The last array holds the labels. Squares of values scaled by them neither cancel nor underflow. With `alike` all
    arrays but the last get the same two.
    """
    centre = np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(0), 1)
    if alike:
        centre[:-1] = centre[:-1].mean(0)
    peak = np.where(known, np.abs(values - centre[:, None]), 0.0).max(1, initial=0.0)
    if alike:
        peak[:-1] = peak[:-1].max(0)
    return centre, np.where(peak > 0, peak, 1.0)


def _constant(values: Values, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (…, targets), whether all labelled clips have one value."""
    high = np.where(known, values, -np.inf).max(1, initial=-np.inf)
    low = np.where(known, values, np.inf).min(1, initial=np.inf)
    return high <= low


def _standardised(p: Values, known: NDArray[np.bool_]) -> Values:
    centre, peak = _scale(np.concatenate([p, p[:1]]), known, alike=False)
    scaled = np.where(known, (p - centre[:-1, None]) / peak[:-1, None], 0.0)
    spread = np.sqrt((scaled * scaled).sum(1) / np.maximum(known.sum(0), 1))
    return scaled / np.where(spread > 0, spread, 1.0)[:, None]
