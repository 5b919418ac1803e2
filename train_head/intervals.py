"""How far a correlation can be trusted: bootstrap confidence intervals, of one prediction and between two.

Clips are drawn with replacement, or whole groups of them where clips of one speaker are no independent evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from train_head.metrics import evaluate
from train_head.resampling import Values, correlations

Bounds = tuple[float | None, ...]
LEVEL = 0.95


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals of Pearson; None where it is undefined in every resample.

    Attributes:
        names: the targets.
        pearson: correlation over all clips.
        low, high: bounds per target.
        mean_pearson: mean over the targets whose correlation is defined.
        mean_low, mean_high: bounds of that mean.
        clips: how many.
        groups: how many were resampled as wholes; None where single clips were.
        resamples: how many were drawn.
        left_out: per target, the resamples in which it is constant.
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
    groups: int | None
    resamples: int
    left_out: tuple[int, ...]
    mean_left_out: int

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
        }

    def table(self) -> str:
        """Plain-text table, one line per target and the mean."""
        width = max(14, *map(len, self.names))
        rows = [
            *zip(self.names, self.pearson, self.low, self.high, strict=True),
            ("mean", self.mean_pearson, self.mean_low, self.mean_high),
        ]
        lines = [f"{'':<{width}}  Pearson  95 % interval"]
        lines += [f"{name:<{width}}  {_cell(value)}  {_cell(low)} {_cell(high)}" for name, value, low, high in rows]
        notes = _left_out(self.names, self.left_out, self.resamples)
        return "\n".join([*lines, _drawn(self.clips, self.groups, self.resamples), *notes])


@dataclass(frozen=True)
class Difference:
    """How much better a is than b on the same clips; None where it is undefined.

    Attributes:
        names: the targets.
        a, b: Pearson over all clips.
        difference: a - b.
        low, high: 95 % bounds of the difference.
        p: two-sided, for the difference being 0.
        a_better: share of the resamples in which a correlates more.
        mean: the same seven for the mean over the targets that are defined for both, by these names.
        clips, groups, resamples: as in `Intervals`.
        left_out: per target, the resamples in which a, b or the labels are constant.
    """

    names: tuple[str, ...]
    a: Bounds
    b: Bounds
    difference: Bounds
    low: Bounds
    high: Bounds
    p: Bounds
    a_better: Bounds
    mean: dict[str, float | None]
    clips: int
    groups: int | None
    resamples: int
    left_out: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        per_target = {n: {key: getattr(self, key)[k] for key in _COLUMNS} for k, n in enumerate(self.names)}
        return {
            "level": LEVEL,
            "clips": self.clips,
            "groups": self.groups,
            "resamples": self.resamples,
            "mean": self.mean,
            "targets": per_target,
            "left_out": dict(zip(self.names, self.left_out, strict=True)),
        }

    def table(self) -> str:
        """Plain-text table, one line per target and the mean."""
        width = max(14, *map(len, self.names))
        lines = [f"{'':<{width}}        A        B    A - B  95 % interval        p"]
        for k, name in enumerate([*self.names, "mean"]):
            of = self.mean if k == len(self.names) else {key: getattr(self, key)[k] for key in _COLUMNS}
            p = "   undef" if of["p"] is None else f"{of['p']:8.4f}"
            lines.append(
                f"{name:<{width}}  {_cell(of['a'])}  {_cell(of['b'])}  {_cell(of['difference'], '+')}  "
                f"{_cell(of['low'], '+')} {_cell(of['high'], '+')} {p}"
            )
        notes = _left_out(self.names, self.left_out, self.resamples)
        return "\n".join([*lines, _drawn(self.clips, self.groups, self.resamples), *notes])


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

    A resample in which a column is constant has no correlation: it is left out for that target, and counted. The mean
    is over the same targets in every resample, so it leaves a resample out where any of them is undefined.

    Args:
        predicted: (clips, targets).
        target: (clips, targets).
        names: (targets,).
        groups: (clips,); whole groups are resampled. With few (Cameron, Gelbach and Miller 2008 say 5 to 30) the
            intervals are too narrow.
        resamples: how many.
        seed: of the draws; equal seeds draw the same clips for any predictions.

    Raises:
        ValueError: the shapes differ, or no resamples.
        LabelError: all clips are of one group.
    """
    report = evaluate(predicted, target, names)
    drawn = correlations([predicted], target, groups, resamples, seed)[:, 0]
    low, high, left_out = zip(*map(_bounds, drawn.T), strict=True)
    mean_low, mean_high, mean_left_out = _bounds(_mean(drawn, [value is not None for value in report.pearson]))
    return Intervals(
        names=report.names,
        pearson=report.pearson,
        low=low,
        high=high,
        mean_pearson=report.mean_pearson,
        mean_low=mean_low,
        mean_high=mean_high,
        clips=report.clips,
        groups=None if groups is None else len(set(groups)),
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
) -> Difference:
    """Compare two predictions of the same clips: each resample scores both, so what both find hard cancels.

    p is twice the smaller share of resamples on one side of 0, each share (1 + count) / (1 + resamples) (Davison and
    Hinkley 1997, section 4.2) so that it is never 0.

    Args:
        a: (clips, targets).
        b: (clips, targets).
        target: (clips, targets).
        names: (targets,).
        groups: as for `bootstrap`.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError, LabelError: as for `bootstrap`.
    """
    one, other = evaluate(a, target, names), evaluate(b, target, names)
    drawn = correlations([a, b], target, groups, resamples, seed)
    differences = drawn[:, 0] - drawn[:, 1]
    pairs = list(zip(one.pearson, other.pearson, strict=True))
    columns = [_compared(x, y, column) for (x, y), column in zip(pairs, differences.T, strict=True)]
    defined = [x is not None and y is not None for x, y in pairs]
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    x, y = np.mean(both, axis=0).tolist() if both else (None, None)
    return Difference(
        names=one.names,
        **{key: tuple(column[key] for column in columns) for key in _COLUMNS},
        mean=_compared(x, y, _mean(differences, defined)),
        clips=one.clips,
        groups=None if groups is None else len(set(groups)),
        resamples=resamples,
        left_out=tuple(int(n) for n in np.isnan(differences).sum(0)),
    )


def _mean(drawn: Values, defined: Sequence[bool]) -> Values:
    """Per resample the mean over the targets that are defined over all clips; NaN where one of them is not here."""
    return drawn[:, list(defined)].mean(1) if any(defined) else np.full(len(drawn), np.nan)


def _bounds(drawn: Values) -> tuple[float | None, float | None, int]:
    """Low, high, and how many resamples were left out."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None, None, len(drawn)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high), len(drawn) - len(defined)


def _compared(a: float | None, b: float | None, drawn: Values) -> dict[str, float | None]:
    low, high, _ = _bounds(drawn)
    defined = drawn[~np.isnan(drawn)]
    known = len(defined) > 0
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return {
        "a": a,
        "b": b,
        "difference": None if a is None or b is None else a - b,
        "low": low,
        "high": high,
        "p": min(1.0, 2 * (1 + side) / (1 + len(defined))) if known else None,
        "a_better": float((defined > 0).mean()) if known else None,
    }


def _cell(value: float | None, sign: str = "") -> str:
    return "  undef" if value is None else f"{value:{sign}7.3f}"


def _drawn(clips: int, groups: int | None, resamples: int) -> str:
    what = f"{clips} clips" if groups is None else f"{groups} groups of {clips} clips"
    return f"{resamples} bootstrap resamples of {what}"


def _left_out(names: Sequence[str], left_out: Sequence[int], resamples: int) -> list[str]:
    some = [f"{name} {n}" for name, n in zip(names, left_out, strict=True) if n > 0]
    return [f"of the {resamples}, left out because a column is constant in them: {', '.join(some)}"] if some else []
