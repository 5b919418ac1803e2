"""How far a figure can be trusted: bootstrap intervals of Pearson, and intervals and tests between two predictions.

Clips are drawn with replacement, or whole groups of them where clips of one speaker are no independent evidence. With
groups, or with few clips, a difference is tested by exchanging the two predictions within units instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from train_head.evaluation.metrics import METRICS, evaluate, few_clips
from train_head.evaluation.resampling import Values, exchanged, resampled
from train_head.evaluation.significance import BOOTSTRAP, SignificanceTest, bootstrap_p, choose_test, exchange_p
from train_head.reports.tables import OVER_TARGETS, cell, text_table

Bounds = tuple[float | None, ...]
LEVEL = 0.95
FEW_GROUPS = 10
"""Groups below which a warning is given. Cameron, Gelbach and Miller (2008, Review of Economics and Statistics 90) call
5 to 30 few, and find that tests with 5 or 10 reject far too often."""


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """95 % confidence intervals of Pearson; None where it is undefined in every resample.

    Attributes:
        names: the targets.
        pearson: correlation over all clips.
        low, high: bounds per target.
        mean_pearson: mean over the targets whose correlation is defined.
        mean_low, mean_high: bounds of that mean.
        clips: how many.
        counts: how many of them have a label, per target.
        groups: how many were resampled as wholes; None where single clips were.
        group_counts: how many of them have a label, per target; None without groups.
        resamples: how many were drawn.
        left_out: per target, the resamples in which it is undefined.
        mean_left_out: the resamples in which any of the targets of the mean is.
    """

    names: tuple[str, ...]
    pearson: Bounds
    low: Bounds
    high: Bounds
    mean_pearson: float | None
    mean_low: float | None
    mean_high: float | None
    clips: int
    counts: tuple[int, ...]
    groups: int | None
    group_counts: tuple[int, ...] | None
    resamples: int
    left_out: tuple[int, ...]
    mean_left_out: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """That groups are few, where they are; of clips, `train_head.evaluation.metrics.Report` says it."""
        return few_groups(self.names, self.group_counts, self.groups)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was drawn and left out, and the warnings."""
        left_out = _left_out(self.names, self.left_out, self.resamples)
        return (_drawn(self.clips, self.groups, self.resamples), *left_out, *self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        return {
            "level": LEVEL,
            "clips": self.clips,
            "groups": self.groups,
            "resamples": self.resamples,
            "mean_pearson": [self.mean_low, self.mean_high],
            "pearson": {n: [a, b] for n, a, b in zip(self.names, self.low, self.high, strict=True)},
            "left_out": dict(zip(self.names, self.left_out, strict=True)),
            "mean_left_out": self.mean_left_out,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two predictions of the same clips differ in a metric; None where it is undefined.

    Attributes:
        names: the targets.
        metric: "pearson", "ccc" or "mae".
        a, b: the metric over all clips.
        difference: a - b.
        low, high: 95 % bounds of the difference.
        p: two-sided, for the difference being 0.
        a_better: share of the resamples in which a is better: lower in "mae", higher in the others.
        mean: the same seven for the mean over the targets that are defined for both, by these names.
        test: which test gave p.
        clips, counts, groups, group_counts, resamples: as in `Intervals`.
        left_out: per target, the resamples in which a or b is undefined.
    """

    names: tuple[str, ...]
    metric: str
    a: Bounds
    b: Bounds
    difference: Bounds
    low: Bounds
    high: Bounds
    p: Bounds
    a_better: Bounds
    mean: dict[str, float | None]
    test: SignificanceTest
    clips: int
    counts: tuple[int, ...]
    groups: int | None
    group_counts: tuple[int, ...] | None
    resamples: int
    left_out: tuple[int, ...]

    @property
    def higher_is_better(self) -> bool:
        """Whether a difference above 0 means that a is better."""
        return self.metric != "mae"

    @property
    def warnings(self) -> tuple[str, ...]:
        """That groups or clips are few, and where p and interval say different things."""
        few = few_clips(self.names, self.counts, self.clips)
        groups = few_groups(self.names, self.group_counts, self.groups)
        return (*([few] if few else []), *groups, *self._contradictions())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        per_target = {n: {key: getattr(self, key)[k] for key in _COLUMNS} for k, n in enumerate(self.names)}
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "level": LEVEL,
            "clips": self.clips,
            "counts": dict(zip(self.names, self.counts, strict=True)),
            "groups": self.groups,
            "resamples": self.resamples,
            "test": self.test.to_dict(),
            "mean": self.mean,
            "targets": per_target,
            "left_out": dict(zip(self.names, self.left_out, strict=True)),
            "warnings": list(self.warnings),
        }

    def table(self) -> str:
        """Plain-text table, one line per target and their mean, what was drawn and which test gave p."""
        missing = set(self.counts) != {self.clips}
        header = ["", *(["clips"] if missing else []), "A", "B", "A - B", "95 % interval", "p"]
        rows = []
        for name, of, count in zip((*self.names, OVER_TARGETS), self._rows(), (*self.counts, ""), strict=True):
            interval = f"{cell(of['low'], '+')} {cell(of['high'], '+')}"
            p = "undef" if of["p"] is None else f"{of['p']:.4f}"
            figures = (cell(of["a"]), cell(of["b"]), cell(of["difference"], "+"), interval, p)
            rows.append([name, *([str(count)] if missing else []), *figures])
        better = f"{METRICS[self.metric]}: A is better where A - B is {'above' if self.higher_is_better else 'below'} 0"
        notes = _left_out(self.names, self.left_out, self.resamples)
        drawn = f"95 % interval: {_drawn(self.clips, self.groups, self.resamples)}"
        return "\n".join([text_table(header, rows), better, drawn, *notes, self.test.sentence(), *self.warnings])

    def _rows(self) -> list[dict[str, float | None]]:
        return [*({key: getattr(self, key)[k] for key in _COLUMNS} for k in range(len(self.names))), self.mean]

    def _contradictions(self) -> list[str]:
        """Rows whose interval leaves 0 out while p is not small, or the other way round."""
        rows = zip((*self.names, OVER_TARGETS), self._rows(), strict=True)
        known = [(name, of["low"], of["high"], of["p"]) for name, of in rows]
        apart = [
            name
            for name, low, high, p in known
            if low is not None and high is not None and p is not None and (low > 0 or high < 0) != (p <= 1 - LEVEL)
        ]
        if self.test.name == BOOTSTRAP or not apart:
            return []
        return [
            f"warning: interval and p disagree on whether the difference could be 0 for {', '.join(apart)}: p is of "
            f"the {self.test.name} test, which holds with few units too; the bootstrap interval needs many"
        ]


_COLUMNS = ("a", "b", "difference", "low", "high", "p", "a_better")


def bootstrap(
    predicted: ArrayLike,
    target: ArrayLike,
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Percentile bootstrap of Pearson per target and of their mean (Efron and Tibshirani 1993, chapter 13).

    A resample in which a column is constant, or has too few labels, has no correlation: it is left out for that target,
    and counted. The mean is over the same targets in every resample, so it leaves a resample out where any of them is
    undefined.

    Args:
        predicted: (clips, targets).
        target: (clips, targets); NaN is a missing label, which is drawn with its clip and then not counted.
        names: (targets,).
        groups: (clips,); whole groups are resampled. Of fewer than `FEW_GROUPS` the intervals are too narrow.
        resamples: how many.
        seed: of the draws; equal seeds draw the same clips for any predictions.

    Raises:
        ValueError: the shapes differ, or no resamples.
        LabelError: all clips are of one group.
    """
    report = evaluate(predicted, target, names)
    drawn = resampled([predicted], target, groups, resamples, seed)[:, 0]
    low, high, left_out = zip(*map(_bounds, drawn.T), strict=True)
    mean = _with_mean(drawn, [value is not None for value in report.pearson])[:, -1]
    mean_low, mean_high, mean_left_out = _bounds(mean)
    return Intervals(
        names=report.names,
        pearson=report.pearson,
        low=low,
        high=high,
        mean_pearson=report.mean_pearson,
        mean_low=mean_low,
        mean_high=mean_high,
        clips=report.clips,
        counts=report.counts,
        groups=None if groups is None else len(set(groups)),
        group_counts=group_counts(target, groups),
        resamples=resamples,
        left_out=left_out,
        mean_left_out=mean_left_out,
    )


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    target: ArrayLike,
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    metric: str = "pearson",
) -> Difference:
    """Compare two predictions of the same clips: each resample scores both, so what both find hard cancels.

    Which test gives p, `train_head.evaluation.significance` decides; the difference says it.

    Args:
        a: (clips, targets).
        b: (clips, targets).
        target: (clips, targets); NaN is a missing label.
        names: (targets,).
        groups: as for `bootstrap`.
        resamples: how many.
        seed: of the draws.
        metric: "pearson", "ccc" or "mae".

    Raises:
        ValueError, LabelError: as for `bootstrap`; or the metric is unknown.
    """
    report, opponent = evaluate(a, target, names), evaluate(b, target, names)
    pairs = list(zip(report.values(metric), opponent.values(metric), strict=True))
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    pairs.append(tuple(np.mean(both, axis=0).tolist()) if both else (None, None))
    defined = [x is not None and y is not None for x, y in pairs[:-1]]
    count = None if groups is None else len(set(groups))
    test = choose_test(report.clips, report.counts, count, resamples)
    drawn = resampled([a, b], target, groups, resamples, seed, metric)
    differences = _with_mean(drawn[:, 0] - drawn[:, 1], defined)
    if test.name == BOOTSTRAP:
        p = [bootstrap_p(column) for column in differences.T]
    else:
        exchanges = _with_mean(exchanged(a, b, target, groups, resamples, seed, metric), defined)
        p = [exchange_p(column) for column in exchanges.T]
    better = -differences if metric == "mae" else differences
    rows = [
        _row(pair, differences[:, k], better[:, k], p[k] if pair[0] is not None and pair[1] is not None else None)
        for k, pair in enumerate(pairs)
    ]
    return Difference(
        names=report.names,
        metric=metric,
        **{key: tuple(row[key] for row in rows[:-1]) for key in _COLUMNS},
        mean=rows[-1],
        test=test,
        clips=report.clips,
        counts=report.counts,
        groups=count,
        group_counts=group_counts(target, groups),
        resamples=resamples,
        left_out=tuple(int(n) for n in np.isnan(differences[:, :-1]).sum(0)),
    )


def group_counts(target: ArrayLike, groups: Sequence[str] | None) -> tuple[int, ...] | None:
    """How many groups have a label, per target; None without groups."""
    if groups is None:
        return None
    names, known = np.asarray(groups, dtype=object), ~np.isnan(np.asarray(target, np.float64))
    return tuple(len(set(names[column])) for column in known.T)


def few_groups(names: Sequence[str], counts: Sequence[int] | None, groups: int | None) -> tuple[str, ...]:
    """Warning that intervals from this few groups are too narrow; nothing where there are enough, or no groups.

    Args:
        names: the targets.
        counts: groups with labels of each.
        groups: how many there are.
    """
    if counts is None or min(counts) >= FEW_GROUPS:
        return ()
    few = ", ".join(f"{name} {n}" for name, n in zip(names, counts, strict=True) if n < FEW_GROUPS)
    what = f"only {groups} groups" if set(counts) == {groups} else f"few groups with labels ({few})"
    return (f"warning: {what}: the bootstrap intervals of fewer than {FEW_GROUPS} are too narrow",)


def _with_mean(values: Values, defined: Sequence[bool]) -> Values:
    """(rows, targets + 1) with, last, the mean over the targets that are defined over all clips.

    It is NaN where one of them is not in a row.
    """
    chosen = values[:, list(defined)]
    mean = chosen.mean(1) if any(defined) else np.full(len(values), np.nan)
    return np.column_stack([values, mean])


def _bounds(drawn: Values) -> tuple[float | None, float | None, int]:
    """Low, high, and how many resamples were left out."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None, None, len(drawn)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high), len(drawn) - len(defined)


def _row(
    pair: tuple[float | None, float | None], drawn: Values, better: Values, p: float | None
) -> dict[str, float | None]:
    a, b = pair
    low, high, _ = _bounds(drawn)
    known = better[~np.isnan(better)]
    return {
        "a": a,
        "b": b,
        "difference": None if a is None or b is None else a - b,
        "low": low,
        "high": high,
        "p": p,
        "a_better": float((known > 0).mean()) if len(known) else None,
    }


def _drawn(clips: int, groups: int | None, resamples: int) -> str:
    what = f"{clips} clips" if groups is None else f"{groups} groups of {clips} clips"
    return f"{resamples} bootstrap resamples of {what}"


def _left_out(names: Sequence[str], left_out: Sequence[int], resamples: int) -> list[str]:
    some = [f"{name} {n}" for name, n in zip(names, left_out, strict=True) if n > 0]
    return [f"of the {resamples}, left out because undefined in them: {', '.join(some)}"] if some else []
