"""Pearson correlation, CCC and mean absolute error of predictions, in float64 over a whole split, and their report.

A NaN label is missing: the clip does not count for that target. A column that is constant, or has fewer than three
labels, has neither a Pearson correlation nor a CCC. Both are then None, are never counted as 0, and are left out of the
mean over targets; the report says how many targets the mean was taken over.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train_head.reports.tables import OVER_TARGETS, cell, markdown_table, text_table

Column = NDArray[np.float64]
Bounds = tuple[float | None, ...]
METRICS = {"pearson": "Pearson", "ccc": "CCC", "mae": "MAE"}
"""Printed names of the metrics. Lower is better for "mae"."""
FEWEST_CLIPS = 3
"""Labelled clips below which a correlation is undefined: with two points it is always 1 or -1."""
FEW_CLIPS = 10
"""Labelled clips below which a warning is given."""
CLIPS, ROWS, GROUPS = "clips", "rows", "groups"
CHANCE = {3: 0.997, 4: 0.950, 5: 0.878, 6: 0.811, 7: 0.754, 8: 0.707, 9: 0.666}
"""Critical absolute correlation at the 5 % level by number of clips (Student's t with n - 2 degrees of freedom; Fisher
1925, table VA)."""
LEVEL = 0.95
FEW_GROUPS = 10
"""Groups below which a warning is given. Cameron, Gelbach and Miller (2008, Review of Economics and Statistics 90) call
5 to 30 few, and find that tests with 5 or 10 reject far too often."""
TRAINING_MEAN, ZEROS = "mean of the training labels", "all zeros"


def pearson(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Return the Pearson correlation of two (clips,) columns where the target is not NaN; None if undefined."""
    a, b = _labelled(predicted, target)
    if _undefined(a, b):
        return None
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # tiny spreads would underflow when squared
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def concordance(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Return Lin's concordance correlation coefficient (population moments); None where `pearson` is undefined."""
    a, b = _labelled(predicted, target)
    if _undefined(a, b):
        return None
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / spread)


def absolute_error(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Return the mean absolute error of two (clips,) columns where the target is not NaN; None without labels."""
    a, b = _labelled(predicted, target)
    return float(np.abs(a - b).mean()) if len(a) else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values; None if there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def label_means(values: ArrayLike) -> Column:
    """Return the (targets,) means of (clips, targets) labels over the labelled clips; NaN for a target without any."""
    labels = np.asarray(values, np.float64)
    known = ~np.isnan(labels)
    with np.errstate(invalid="ignore"):
        means: Column = np.where(known, labels, 0.0).sum(0) / known.sum(0)
    return means


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """What bootstrap resamples were drawn from.

    Attributes:
        names: the targets.
        clips: number of clips.
        counts: labelled clips per target.
        groups: number of groups, resampled as wholes; None where single clips were resampled.
        group_counts: groups with a label, per target; None without groups.
        resamples: number of resamples.
        left_out: per target, the resamples in which the metric is undefined.
        counted: what `clips` and `counts` count: "clips", or "rows" of labels per frame.
        units: what `groups` and `group_counts` count: "groups", or "clips", each with its rows of labels per frame.
    """

    names: tuple[str, ...]
    clips: int
    counts: tuple[int, ...]
    groups: int | None
    group_counts: tuple[int, ...] | None
    resamples: int
    left_out: tuple[int, ...]
    counted: str = CLIPS
    units: str = GROUPS

    @property
    def grouped(self) -> bool:
        """Whether groups of clips were resampled."""
        return self.groups is not None and self.units == GROUPS

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warning that intervals from few groups are too narrow; `Report.notes` has that about few clips."""
        counts = self.group_counts
        if counts is None or self.groups == 1 or min(counts) >= FEW_GROUPS:
            return ()
        few = ", ".join(f"{name} {n}" for name, n in zip(self.names, counts, strict=True) if n < FEW_GROUPS)
        all_alike = set(counts) == {self.groups}
        what = f"only {self.groups} {self.units}" if all_alike else f"few {self.units} with labels ({few})"
        return (f"warning: {what}: the bootstrap intervals of fewer than {FEW_GROUPS} are too narrow",)

    def drawn(self) -> list[str]:
        """Return what was resampled, and for which targets resamples were left out."""
        if self.groups == 1:
            return [f"no interval: there is one {self.units[:-1]}"]
        what = f"{self.clips} {self.counted}"
        if self.groups is not None:
            what = f"{self.groups} {self.units} {'of' if self.counted == CLIPS else 'with'} {what}"
        some = ", ".join(f"{name} {n}" for name, n in zip(self.names, self.left_out, strict=True) if n)
        notes = [f"of the {self.resamples}, left out because undefined in them: {some}"] if some else []
        return [f"{self.resamples} bootstrap resamples of {what}", *notes]


@dataclass(frozen=True, kw_only=True)
class Intervals(Resampled):
    """95 % bootstrap confidence intervals of Pearson or CCC; None where it is undefined in every resample.

    Attributes:
        metric: "pearson" or "ccc".
        low, high: bounds per target.
        mean_low, mean_high: bounds of the mean over the targets whose correlation over all clips is defined.
        mean_left_out: resamples in which any target of the mean is undefined.
    """

    low: Bounds
    high: Bounds
    mean_low: float | None
    mean_high: float | None
    mean_left_out: int
    metric: str = "pearson"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was resampled and left out, and the warnings."""
        return (*self.drawn(), *self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
        return {
            "level": LEVEL,
            self.counted: self.clips,
            self.units: self.groups,
            "resamples": self.resamples,
            f"mean_{self.metric}": [self.mean_low, self.mean_high],
            self.metric: {n: [a, b] for n, a, b in zip(self.names, self.low, self.high, strict=True)},
            "left_out": dict(zip(self.names, self.left_out, strict=True)),
            "mean_left_out": self.mean_left_out,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Metrics of one split.

    Attributes:
        names: the targets.
        clips: number of clips.
        counts: labelled clips per target.
        pearson: correlation per target, None where undefined.
        concordance: CCC per target, None where undefined.
        mae: mean absolute error per target, None without labels.
        baselines: mean absolute error per target of constant predictions, by what is predicted for every clip; they
            have no correlation. None where unknown.
        counted: what `clips` and `counts` count: "clips", or "rows" of labels per frame.
    """

    names: tuple[str, ...]
    clips: int
    counts: tuple[int, ...]
    pearson: Bounds
    concordance: Bounds
    mae: Bounds
    baselines: Mapping[str, Bounds]
    counted: str = CLIPS

    @property
    def mean_pearson(self) -> float | None:
        """Mean over the targets with a defined correlation."""
        return mean_of(self.pearson)

    @property
    def mean_concordance(self) -> float | None:
        """Mean over the targets with a defined CCC."""
        return mean_of(self.concordance)

    @property
    def mean_mae(self) -> float | None:
        """Mean over the targets with labels."""
        return mean_of(self.mae)

    def mean(self, metric: str) -> float | None:
        """Return the mean of "pearson", "ccc" or "mae" over the targets for which it is defined."""
        return mean_of(self.values(metric))

    def values(self, metric: str) -> Bounds:
        """Return the values per target of "pearson", "ccc" or "mae"."""
        return {"pearson": self.pearson, "ccc": self.concordance, "mae": self.mae}[metric]

    @property
    def undefined(self) -> tuple[str, ...]:
        """Targets without Pearson and CCC: labels or predictions are constant, or there are fewer than three labels."""
        return tuple(name for name, value in zip(self.names, self.pearson, strict=True) if value is None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is undefined and why, and a warning about few clips."""
        few = few_clips(self.names, self.counts, self.clips, self.counted)
        short = [name for name, n in zip(self.names, self.counts, strict=True) if n < FEWEST_CLIPS]
        constant = [name for name in self.undefined if name not in short]
        reasons = [
            (constant, "constant labels or predictions"),
            (short, f"fewer than {FEWEST_CLIPS} labelled {self.counted}"),
        ]
        said = " and ".join(f"for {', '.join(names)} ({why})" for names, why in reasons if names)
        defined = len(self.names) - len(self.undefined)
        mean = f"the mean is over the other {defined} of {len(self.names)}" if defined else "there is no mean"
        undefined = f"Pearson and CCC are undefined {said}; {mean}." if self.undefined else None
        return tuple(note for note in (undefined, few) if note)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
        return {
            self.counted: self.clips,
            "counts": self._by_name(self.counts),
            "mean_pearson": self.mean_pearson,
            "mean_concordance": self.mean_concordance,
            "mean_mae": self.mean_mae,
            "pearson": self._by_name(self.pearson),
            "concordance": self._by_name(self.concordance),
            "mae": self._by_name(self.mae),
            "undefined": list(self.undefined),
            "baselines": {
                name: {"mean_mae": mean_of(mae), "mae": self._by_name(mae)} for name, mae in self.baselines.items()
            },
            "notes": list(self.notes),
        }

    def table(self, intervals: Intervals | None = None) -> str:
        """Return a plain-text table of the targets, their mean and the baselines, and the notes below it.

        Args:
            intervals: of the same split, shown beside Pearson.
        """
        notes = (*self.notes, *(intervals.notes if intervals else ()))
        return "\n".join([text_table(*self._rows(OVER_TARGETS, intervals, " ", "undef")), *notes])

    def markdown(self, intervals: Intervals | None = None) -> str:
        """Return the same table in Markdown, without the notes."""
        header, rows = self._rows(f"**{OVER_TARGETS}**", intervals, " to ", "undefined")
        return markdown_table(["target", *header[1:]], rows)

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))

    def _rows(
        self, mean: str, intervals: Intervals | None, to: str, undefined: str
    ) -> tuple[list[str], list[list[str]]]:
        """Return header and rows; with a column of counts if labels are missing, and one of intervals if given."""
        baselines = [mean_of(mae) for mae in self.baselines.values()]
        nothing: list[float | None] = [None] * len(baselines)

        def shown(values: Iterable[float | None]) -> list[str]:
            return [cell(value, undefined=undefined) for value in values]

        columns = {"": [*self.names, mean, *self.baselines]}
        if set(self.counts) != {self.clips}:
            columns[self.counted] = [*map(str, self.counts)]
        for metric in ("pearson", "ccc"):
            columns[METRICS[metric]] = shown((*self.values(metric), self.mean(metric), *nothing))
            if intervals is not None and intervals.metric == metric:
                bounds = zip((*intervals.low, intervals.mean_low), (*intervals.high, intervals.mean_high), strict=True)
                columns["95 % interval"] = [to.join(shown(pair)) for pair in bounds]
        columns["MAE"] = shown((*self.mae, self.mean_mae, *baselines))
        return list(columns), [list(row) for row in zip_longest(*columns.values(), fillvalue="")]


def as_columns(predicted: ArrayLike, target: ArrayLike, names: Sequence[str]) -> tuple[Column, Column]:
    """Return predictions and labels as float64.

    Raises:
        ValueError: the shapes are not both (clips, targets).
    """
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != len(names):
        raise ValueError(f"predictions have shape {a.shape}, labels {b.shape}, expected both (clips, {len(names)})")
    return a, b


def evaluate(
    predicted: ArrayLike, target: ArrayLike, names: Sequence[str], train_mean: ArrayLike | None = None
) -> Report:
    """Compare predictions with labels.

    Args:
        predicted: (clips, targets).
        target: (clips, targets); NaN is a missing label.
        names: (targets,).
        train_mean: mean of the training labels, scored as a baseline: (targets,), or (clips, targets) if clips were
            predicted by runs with different training clips. None leaves it out.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = as_columns(predicted, target, names)
    columns = range(a.shape[1])
    constants: Mapping[str, ArrayLike] = {} if train_mean is None else {TRAINING_MEAN: train_mean}

    def errors_of(constant: ArrayLike) -> Bounds:
        full = np.broadcast_to(np.asarray(constant, np.float64), a.shape)
        found = [absolute_error(full[:, k], b[:, k]) for k in columns]
        return tuple(None if error is None or np.isnan(error) else error for error in found)

    return Report(
        names=tuple(names),
        clips=len(a),
        counts=tuple((~np.isnan(b)).sum(0).tolist()),
        pearson=tuple(pearson(a[:, k], b[:, k]) for k in columns),
        concordance=tuple(concordance(a[:, k], b[:, k]) for k in columns),
        mae=tuple(absolute_error(a[:, k], b[:, k]) for k in columns),
        baselines={name: errors_of(value) for name, value in {**constants, ZEROS: np.zeros(len(names))}.items()},
    )


def few_clips(names: Sequence[str], counts: Sequence[int], clips: int, counted: str = CLIPS) -> str | None:
    """Return a warning that a correlation over few clips says little; None if there are enough.

    Args:
        names: the targets.
        counts: labelled clips of each.
        clips: number of clips.
        counted: what these are, "clips" or "rows".
    """
    fewest = min(counts, default=clips)
    if fewest >= FEW_CLIPS:
        return None
    few = ", ".join(f"{name} {n}" for name, n in zip(names, counts, strict=True) if n < FEW_CLIPS)
    what = f"only {clips} {counted if clips != 1 else counted[:-1]}"
    if set(counts) != {clips}:
        what = f"few labelled {counted} ({few})"
    says = (
        f"with {fewest}, correlations up to {CHANCE[fewest]:.2f} are chance at the 5 % level"
        if fewest in CHANCE
        else f"with fewer than {FEWEST_CLIPS}, a correlation is 1 or -1 whatever was predicted"
    )
    return f"warning: {what}: {says}"


def _labelled(predicted: ArrayLike, target: ArrayLike) -> tuple[Column, Column]:
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    known = ~np.isnan(b)
    return (a, b) if known.all() else (a[known], b[known])


def _undefined(a: Column, b: Column) -> bool:
    return len(a) < FEWEST_CLIPS or bool(np.ptp(a) == 0 or np.ptp(b) == 0)
