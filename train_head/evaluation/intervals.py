"""Bootstrap intervals of Pearson, and the difference between two predictions of the same clips.

Clips are resampled with replacement; with groups, such as speakers, whole groups are.

With many clips and no groups, the p-value of a difference is twice the smaller share of bootstrap resamples on one side
of 0. Each share is (1 + count) / (1 + resamples) (Davison and Hinkley 1997, section 4.2), so that p is never 0.

With groups, or with few clips, bootstrap p-values are far too small. There p is from a randomisation test (Fisher 1935,
The Design of Experiments; Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses). Under its null
hypothesis the two predictions of a unit, a group or a clip, can be exchanged. p is the share of exchanges, the identity
included, after which the metric over all clips differs by at least as much as observed. Up to `EXACT_UNITS` units all
2^units exchanges are tried, so p is exact and at least 2 / 2^units. With more units, random ones are drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from train_head.evaluation.metrics import LEVEL, METRICS, Intervals, Resampled, evaluate, few_clips
from train_head.evaluation.resampling import EXACT_UNITS, Values, exchanged, resampled
from train_head.reports.tables import OVER_TARGETS, cell, text_table

Row = dict[str, float | None]
BOOTSTRAP, EXACT, RANDOM = "bootstrap", "exact sign-flip", "random sign-flip"
TIE = 1e-9
"""Differences this close, relative to the largest, count as equal: the sums are rounded."""


@dataclass(frozen=True, kw_only=True)
class SignificanceTest:
    """How a difference was tested.

    Attributes:
        name: "bootstrap", "exact sign-flip" or "random sign-flip".
        units: number of clips or groups.
        grouped: whether units are groups.
        number: number of resamples, or of exchanges of the two predictions.
    """

    name: str
    units: int
    grouped: bool
    number: int

    @property
    def least(self) -> float:
        """The lowest p that the test can give."""
        return 2 / self.number if self.name == EXACT else (2 if self.name == BOOTSTRAP else 1) / (1 + self.number)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {"name": self.name, "units": self.units, "number": self.number, "least_p": self.least}

    def sentence(self) -> str:
        """Describe the test in a sentence."""
        if self.name == BOOTSTRAP:
            return "p: two-sided, from the same resamples as the interval"
        over = f"{self.units} {'groups' if self.grouped else 'clips'}"
        number = f"all {self.number}" if self.name == EXACT else f"{self.number} random"
        return (
            f"p: two-sided, {self.name} test over {over} with {number} exchanges of A and B within them; it cannot go "
            f"below {self.least:.3g}"
        )


@dataclass(frozen=True, kw_only=True)
class Difference(Resampled):
    """How two predictions of the same clips differ in a metric; None where it is undefined.

    Attributes:
        metric: "pearson", "ccc" or "mae".
        targets: per target `a` and `b`, the metric over all clips; their `difference`, with 95 % bounds `low` and
            `high`; `p`, the two-sided p-value of a difference of 0; `a_better`, the share of the resamples in which a
            is better: lower in "mae", higher in the others.
        mean: the same seven values for the mean over the targets that are defined for both.
        test: the test that gave p.
    """

    metric: str
    targets: Mapping[str, Row]
    mean: Row
    test: SignificanceTest

    @property
    def higher_is_better(self) -> bool:
        """Whether a difference above 0 means that a is better."""
        return self.metric != "mae"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Few clips, few groups, and rows in which p and interval disagree on whether the difference could be 0."""
        few = few_clips(self.names, self.counts, self.clips, self.counted)
        apart = [
            name
            for name, row in (*self.targets.items(), (OVER_TARGETS, self.mean))
            if (low := row["low"]) is not None and (high := row["high"]) is not None and (p := row["p"]) is not None
            if (low > 0 or high < 0) != (p <= 1 - LEVEL)
        ]
        disagree = (
            f"warning: interval and p disagree on whether the difference could be 0 for {', '.join(apart)}: p is from "
            f"the {self.test.name} test, which is valid with few units too; the bootstrap interval needs many"
        )
        shown = bool(apart) and self.test.name != BOOTSTRAP
        return (*([few] if few else []), *super().warnings, *([disagree] if shown else []))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "level": LEVEL,
            self.counted: self.clips,
            "counts": dict(zip(self.names, self.counts, strict=True)),
            self.units: self.groups,
            "resamples": self.resamples,
            "test": self.test.to_dict(),
            "mean": self.mean,
            "targets": dict(self.targets),
            "left_out": dict(zip(self.names, self.left_out, strict=True)),
            "warnings": list(self.warnings),
        }

    def table(self) -> str:
        """Return a plain-text table, one line per target and their mean, and notes on resampling and test."""
        lines: list[tuple[str, ...]] = [("", self.counted, "A", "B", "A - B", "95 % interval", "p")]
        rows = (*self.targets.items(), (OVER_TARGETS, self.mean))
        for (name, row), count in zip(rows, (*self.counts, ""), strict=True):
            interval = f"{cell(row['low'], '+')} {cell(row['high'], '+')}"
            p = "undef" if row["p"] is None else f"{row['p']:.4f}"
            lines.append((name, str(count), cell(row["a"]), cell(row["b"]), cell(row["difference"], "+"), interval, p))
        if set(self.counts) == {self.clips}:
            lines = [(name, *figures) for name, _, *figures in lines]
        better = f"{METRICS[self.metric]}: A is better where A - B is {'above' if self.higher_is_better else 'below'} 0"
        drawn, *left_out = self.drawn()
        notes = [better, f"95 % interval: {drawn}", *left_out, self.test.sentence(), *self.warnings]
        return "\n".join([text_table(lines[0], lines[1:]), *notes])


def bootstrap(
    predicted: ArrayLike,
    target: ArrayLike,
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    metric: str = "pearson",
) -> Intervals:
    """Compute percentile bootstrap intervals of Pearson or CCC per target and of their mean.

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
        metric: "pearson" or "ccc".

    Raises:
        ValueError: the shapes differ, or no resamples.
        LabelError: all clips are of one group.
    """
    report = evaluate(predicted, target, names)
    drawn = resampled([predicted], target, groups, resamples, seed, metric)[:, 0]
    low, high, left_out = zip(*map(_bounds, drawn.T), strict=True)
    mean_low, mean_high, mean_left_out = _bounds(_with_mean(drawn, [r is not None for r in report.pearson])[:, -1])
    return Intervals(
        metric=metric,
        names=report.names,
        low=low,
        high=high,
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
        targets=dict(zip(report.names, rows[:-1], strict=True)),
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
    low, high, left_out = _bounds(drawn)
    better = int(np.count_nonzero(drawn < 0 if metric == "mae" else drawn > 0))
    difference = None if a is None or b is None else a - b
    return {
        "a": a,
        "b": b,
        "difference": difference,
        "low": low,
        "high": high,
        "p": None if difference is None else p,
        "a_better": better / (len(drawn) - left_out) if left_out < len(drawn) else None,
    }


def choose_test(clips: int, counts: Sequence[int], groups: int | None, resamples: int) -> SignificanceTest:
    """Choose the test for a number of clips or groups; see the top of this file.

    Args:
        clips: number of clips.
        counts: labelled clips per target.
        groups: number of groups; None if clips are units.
        resamples: number of resamples or exchanges to draw.
    """
    units = clips if groups is None else groups
    if units <= EXACT_UNITS:
        name, resamples = EXACT, 2**units
    else:
        name = BOOTSTRAP if groups is None and min(counts) > EXACT_UNITS else RANDOM
    return SignificanceTest(name=name, units=units, grouped=groups is not None, number=resamples)


def bootstrap_p(drawn: Values) -> float | None:
    """Return the two-sided p of resampled differences, NaN ones left out; None if all are NaN."""
    defined = drawn[~np.isnan(drawn)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + side) / (1 + len(defined))) if len(defined) else None


def exchange_p(differences: Values) -> float:
    """Return the share of exchanges with at least the difference of the first, which is the identity.

    An exchange after which the metric is undefined counts as one, so that p is not too low.
    """
    sizes = np.abs(differences)
    return float((~(sizes < sizes[0] - TIE * sizes.max(where=~np.isnan(sizes), initial=0.0))).mean())
