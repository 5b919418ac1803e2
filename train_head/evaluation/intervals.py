"""Bootstrap intervals of Pearson, and the difference between two predictions of the same clips.

Clips are resampled with replacement; with groups, such as speakers, whole groups are. `significance` says how a
difference is tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from train_head.evaluation.metrics import (
    LEVEL,
    METRICS,
    Bounds,
    Intervals,
    evaluate,
    few_clips,
    few_groups,
    resampling_notes,
)
from train_head.evaluation.resampling import Values, exchanged, resampled
from train_head.evaluation.significance import BOOTSTRAP, SignificanceTest, bootstrap_p, choose_test, exchange_p
from train_head.reports.tables import OVER_TARGETS, cell, text_table


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two predictions of the same clips differ in a metric; None where it is undefined.

    Attributes:
        names: the targets.
        metric: "pearson", "ccc" or "mae".
        a, b: the metric over all clips.
        difference: a - b.
        low, high: 95 % bounds of the difference.
        p: two-sided p-value of a difference of 0.
        a_better: share of the resamples in which a is better: lower in "mae", higher in the others.
        mean: the same seven values for the mean over the targets that are defined for both, by these names.
        test: the test that gave p.
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
        """Few groups, few clips, and rows in which p and interval disagree."""
        few = few_clips(self.names, self.counts, self.clips)
        groups = few_groups(self.names, self.group_counts, self.groups)
        return (*([few] if few else []), *groups, *self._contradictions())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
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
            "targets": dict(zip(self.names, self._rows(), strict=False)),
            "left_out": dict(zip(self.names, self.left_out, strict=True)),
            "warnings": list(self.warnings),
        }

    def table(self) -> str:
        """Return a plain-text table, one line per target and their mean, and notes on resampling and test."""
        missing = set(self.counts) != {self.clips}
        header = ["", *(["clips"] if missing else []), "A", "B", "A - B", "95 % interval", "p"]
        rows = []
        for name, row, count in zip((*self.names, OVER_TARGETS), self._rows(), (*self.counts, ""), strict=True):
            interval = f"{cell(row['low'], '+')} {cell(row['high'], '+')}"
            p = "undef" if row["p"] is None else f"{row['p']:.4f}"
            figures = (cell(row["a"]), cell(row["b"]), cell(row["difference"], "+"), interval, p)
            rows.append([name, *([str(count)] if missing else []), *figures])
        better = f"{METRICS[self.metric]}: A is better where A - B is {'above' if self.higher_is_better else 'below'} 0"
        drawn, *left_out = resampling_notes(self.names, self.clips, self.groups, self.resamples, self.left_out)
        notes = [better, f"95 % interval: {drawn}", *left_out, self.test.sentence(), *self.warnings]
        return "\n".join([text_table(header, rows), *notes])

    def _rows(self) -> list[dict[str, float | None]]:
        return [*({key: getattr(self, key)[k] for key in _COLUMNS} for k in range(len(self.names))), self.mean]

    def _contradictions(self) -> list[str]:
        """Name the rows in which the interval excludes 0 and p is not small, or the other way round."""
        apart = [
            name
            for name, row in zip((*self.names, OVER_TARGETS), self._rows(), strict=True)
            if (low := row["low"]) is not None and (high := row["high"]) is not None and (p := row["p"]) is not None
            if (low > 0 or high < 0) != (p <= 1 - LEVEL)
        ]
        if self.test.name == BOOTSTRAP or not apart:
            return []
        return [
            f"warning: interval and p disagree on whether the difference could be 0 for {', '.join(apart)}: p is from "
            f"the {self.test.name} test, which is valid with few units too; the bootstrap interval needs many"
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
    """Compute percentile bootstrap intervals of Pearson per target and of their mean.

    Follows Efron and Tibshirani (1993), chapter 13. A resample in which a column is constant, or has too few labels,
    has no correlation: it is left out for that target, and counted. The mean is over the same targets in every
    resample, so a resample in which any of them is undefined is left out of it.

    Args:
        predicted: (clips, targets).
        target: (clips, targets); NaN is a missing label. It is drawn with its clip and then ignored.
        names: (targets,).
        groups: (clips,); whole groups are resampled. With fewer than `FEW_GROUPS` the intervals are too narrow.
        resamples: number of resamples.
        seed: of the draws; equal seeds draw the same clips for any predictions.

    Raises:
        ValueError: the shapes differ, or no resamples.
        LabelError: all clips are of one group.
    """
    report = evaluate(predicted, target, names)
    drawn = resampled([predicted], target, groups, resamples, seed)[:, 0]
    low, high, left_out = zip(*map(_bounds, drawn.T), strict=True)
    mean_low, mean_high, mean_left_out = _bounds(_with_mean(drawn, [r is not None for r in report.pearson])[:, -1])
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
        group_counts=_group_counts(target, groups),
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
    """Compare two predictions of the same clips.

    Each resample scores both, so clips that are hard for both do not widen the interval of the difference.

    Args:
        a: (clips, targets).
        b: (clips, targets).
        target: (clips, targets); NaN is a missing label.
        names: (targets,).
        groups: as for `bootstrap`.
        resamples: number of resamples.
        seed: of the draws.
        metric: "pearson", "ccc" or "mae".

    Raises:
        ValueError, LabelError: as for `bootstrap`; or the metric is unknown.
    """
    report, other = evaluate(a, target, names), evaluate(b, target, names)
    pairs = list(zip(report.values(metric), other.values(metric), strict=True))
    defined = [x is not None and y is not None for x, y in pairs]
    both = [pair for pair, known in zip(pairs, defined, strict=True) if known]
    pairs.append(tuple(np.mean(np.array(both, np.float64), axis=0).tolist()) if both else (None, None))
    count = None if groups is None else len(set(groups))
    test = choose_test(report.clips, report.counts, count, resamples)
    drawn = resampled([a, b], target, groups, resamples, seed, metric)
    differences = _with_mean(drawn[:, 0] - drawn[:, 1], defined)
    if test.name == BOOTSTRAP:
        p = [bootstrap_p(column) for column in differences.T]
    else:
        exchanges = _with_mean(exchanged(a, b, target, groups, resamples, seed, metric), defined)
        p = [exchange_p(column) for column in exchanges.T]
    rows = [_row(pair, differences[:, k], metric, p[k]) for k, pair in enumerate(pairs)]
    return Difference(
        names=report.names,
        metric=metric,
        **{key: tuple(row[key] for row in rows[:-1]) for key in _COLUMNS},
        mean=rows[-1],
        test=test,
        clips=report.clips,
        counts=report.counts,
        groups=count,
        group_counts=_group_counts(target, groups),
        resamples=resamples,
        left_out=tuple(int(n) for n in np.isnan(differences[:, :-1]).sum(0)),
    )


def _group_counts(target: ArrayLike, groups: Sequence[str] | None) -> tuple[int, ...] | None:
    """Return the number of groups with a label, per target; None without groups."""
    if groups is None:
        return None
    names, known = np.asarray(groups, dtype=object), ~np.isnan(np.asarray(target, np.float64))
    return tuple(len(set(names[column])) for column in known.T)


def _with_mean(values: Values, defined: Sequence[bool]) -> Values:
    """Append to (rows, targets) the mean over the targets that are defined over all clips.

    The mean is NaN in rows where one of them is.
    """
    mean = values[:, list(defined)].mean(1) if any(defined) else np.full(len(values), np.nan)
    return np.column_stack([values, mean])


def _bounds(drawn: Values) -> tuple[float | None, float | None, int]:
    """Return low, high, and the number of resamples left out."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None, None, len(drawn)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high), len(drawn) - len(defined)


def _row(
    pair: tuple[float | None, float | None], drawn: Values, metric: str, p: float | None
) -> dict[str, float | None]:
    a, b = pair
    low, high, _ = _bounds(drawn)
    defined = drawn[~np.isnan(drawn)]
    better = defined < 0 if metric == "mae" else defined > 0
    difference = None if a is None or b is None else a - b
    return {
        "a": a,
        "b": b,
        "difference": difference,
        "low": low,
        "high": high,
        "p": None if difference is None else p,
        "a_better": float(better.mean()) if len(defined) else None,
    }
