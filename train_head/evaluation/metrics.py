"""Agreement of predictions with labels, in float64 over the whole split.

A label that is NaN is missing: the clip does not count for that target. A column that is constant, or has fewer than
three labels, has neither a Pearson correlation nor a CCC: both are undefined and left out of the mean, which says over
how many targets it was taken. They are never counted as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train_head.reports.tables import OVER_TARGETS, cell, markdown_table, text_table

if TYPE_CHECKING:
    from train_head.evaluation.intervals import Intervals

Column = NDArray[np.float64]
METRICS = {"pearson": "Pearson", "ccc": "CCC", "mae": "MAE"}
"""By name, how each is printed. Of the last, lower is better."""
FEWEST_CLIPS = 3
"""Labelled clips below which a correlation is undefined: two points always lie on a line, so theirs is 1 or -1."""
FEW_CLIPS = 10
"""Labelled clips below which a warning is given."""
CHANCE = {3: 0.997, 4: 0.950, 5: 0.878, 6: 0.811, 7: 0.754, 8: 0.707, 9: 0.666}
"""By the number of clips, the correlation that chance exceeds in 5 % of samples, up or down (Student's t with n - 2
degrees of freedom; Fisher 1925, table VA)."""
TRAINING_MEAN, ZEROS = "mean of the training labels", "all zeros"


def pearson(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Pearson correlation of two (clips,) columns where the target is not NaN, or None where it is undefined."""
    a, b = _labelled(predicted, target)
    if _undefined(a, b):
        return None
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # tiny spreads would underflow when squared
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def concordance(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Lin's concordance correlation coefficient (population moments), or None where it is undefined, as `pearson`."""
    a, b = _labelled(predicted, target)
    if _undefined(a, b):
        return None
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / spread)


def absolute_error(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Mean absolute error of two (clips,) columns where the target is not NaN, or None where it always is."""
    a, b = _labelled(predicted, target)
    return float(np.abs(a - b).mean()) if len(a) else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def label_means(values: ArrayLike) -> Column:
    """(targets,) mean of (clips, targets) labels, each over the clips that have it; NaN where none has."""
    labels = np.asarray(values, np.float64)
    known = ~np.isnan(labels)
    with np.errstate(invalid="ignore"):
        means: Column = np.where(known, labels, 0.0).sum(0) / known.sum(0)
    return means


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What predictions that do not depend on the clip would score; they have no correlation.

    Attributes:
        name: what is predicted for every clip.
        mae: mean absolute error per target; None where it is not known.
    """

    name: str
    mae: tuple[float | None, ...]

    @property
    def mean_mae(self) -> float | None:
        """Mean over the targets."""
        return mean_of(self.mae)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Metrics of one split.

    Attributes:
        names: the targets.
        clips: how many clips were compared.
        counts: how many of them have a label, per target.
        pearson: correlation per target, None where undefined.
        concordance: CCC per target, None where undefined.
        mae: mean absolute error per target, None without labels.
        baselines: what constant predictions would score on the same labels.
    """

    names: tuple[str, ...]
    clips: int
    counts: tuple[int, ...]
    pearson: tuple[float | None, ...]
    concordance: tuple[float | None, ...]
    mae: tuple[float | None, ...]
    baselines: tuple[Baseline, ...]

    @property
    def mean_pearson(self) -> float | None:
        """Mean over the targets whose correlation is defined; None where none is."""
        return mean_of(self.pearson)

    @property
    def mean_concordance(self) -> float | None:
        """Mean over the targets whose CCC is defined; None where none is."""
        return mean_of(self.concordance)

    @property
    def mean_mae(self) -> float | None:
        """Mean over the targets that have labels; None where none has."""
        return mean_of(self.mae)

    def values(self, metric: str) -> tuple[float | None, ...]:
        """The values per target of "pearson", "ccc" or "mae"."""
        return {"pearson": self.pearson, "ccc": self.concordance, "mae": self.mae}[metric]

    @property
    def undefined(self) -> tuple[str, ...]:
        """Targets without Pearson and CCC: their labels or predictions are constant, or fewer than three."""
        return tuple(name for name, value in zip(self.names, self.pearson, strict=True) if value is None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures has to know: what is undefined and why, and that clips are few."""
        few = few_clips(self.names, self.counts, self.clips)
        return (*self._undefined_notes(), *([few] if few else []))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        return {
            "clips": self.clips,
            "counts": dict(zip(self.names, self.counts, strict=True)),
            "mean_pearson": self.mean_pearson,
            "mean_concordance": self.mean_concordance,
            "mean_mae": self.mean_mae,
            "pearson": dict(zip(self.names, self.pearson, strict=True)),
            "concordance": dict(zip(self.names, self.concordance, strict=True)),
            "mae": dict(zip(self.names, self.mae, strict=True)),
            "undefined": list(self.undefined),
            "baselines": {
                line.name: {"mean_mae": line.mean_mae, "mae": dict(zip(self.names, line.mae, strict=True))}
                for line in self.baselines
            },
            "notes": list(self.notes),
        }

    def table(self, intervals: "Intervals | None" = None) -> str:
        """Plain-text table: a line per target, their mean, the baselines, and what a reader has to know.

        Args:
            intervals: of the same split, shown beside Pearson.
        """
        notes = (*self.notes, *(intervals.notes if intervals else ()))
        return "\n".join([text_table(*self._cells(OVER_TARGETS, intervals, " ", "undef")), *notes])

    def markdown(self, intervals: "Intervals | None" = None) -> str:
        """The same table in Markdown, without the notes."""
        header, rows = self._cells(f"**{OVER_TARGETS}**", intervals, " to ", "undefined")
        return markdown_table(["target", *header[1:]], rows)

    def _cells(
        self, mean: str, intervals: "Intervals | None", to: str, undefined: str
    ) -> tuple[list[str], list[list[str]]]:
        """Header and rows; a column of counts where labels are missing, and one of intervals where there are some."""
        lines: list[tuple[str, float | None, float | None, float | None]] = [
            *zip(self.names, self.pearson, self.concordance, self.mae, strict=True),
            (mean, self.mean_pearson, self.mean_concordance, self.mean_mae),
            *((baseline.name, None, None, baseline.mean_mae) for baseline in self.baselines),
        ]
        header = ["", "Pearson", "CCC", "MAE"]
        rows = [[name, *(cell(value, undefined=undefined) for value in values)] for name, *values in lines]
        if intervals is not None:
            bounds = zip((*intervals.low, intervals.mean_low), (*intervals.high, intervals.mean_high), strict=True)
            ranges = [to.join(cell(bound, undefined=undefined) for bound in pair) for pair in bounds]
            _insert(header, rows, 2, "95 % interval", ranges)
        if set(self.counts) != {self.clips}:
            _insert(header, rows, 1, "clips", [str(count) for count in self.counts])
        return header, rows

    def _undefined_notes(self) -> list[str]:
        if not self.undefined:
            return []
        short = [name for name, n in zip(self.names, self.counts, strict=True) if n < FEWEST_CLIPS]
        constant = [name for name in self.undefined if name not in short]
        reasons = [(constant, "constant labels or predictions"), (short, f"fewer than {FEWEST_CLIPS} labelled clips")]
        said = " and ".join(f"for {', '.join(names)} ({why})" for names, why in reasons if names)
        defined = len(self.names) - len(self.undefined)
        mean = f"the mean is over the other {defined} of {len(self.names)}" if defined else "there is no mean"
        return [f"Pearson and CCC are undefined {said}; {mean}."]


def evaluate(
    predicted: ArrayLike, target: ArrayLike, names: Sequence[str], train_mean: ArrayLike | None = None
) -> Report:
    """Compare (clips, targets) predictions with labels, of which NaN is a missing one.

    Args:
        predicted: (clips, targets).
        target: (clips, targets).
        names: (targets,).
        train_mean: mean of the training labels, which is scored as a baseline: (targets,), or (clips, targets) where
            clips were predicted by runs with different training clips. None leaves it out.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != len(names):
        raise ValueError(f"predictions have shape {a.shape}, labels {b.shape}, expected both (clips, {len(names)})")
    constants = {} if train_mean is None else {TRAINING_MEAN: np.asarray(train_mean, np.float64)}
    columns = range(a.shape[1])

    def errors(values: Column) -> tuple[float | None, ...]:
        return tuple(absolute_error(values[:, k], b[:, k]) for k in columns)

    def constant(value: Column) -> tuple[float | None, ...]:
        errors_of = errors(np.broadcast_to(value, a.shape))
        return tuple(None if error is None or np.isnan(error) else error for error in errors_of)

    return Report(
        names=tuple(names),
        clips=len(a),
        counts=tuple((~np.isnan(b)).sum(0).tolist()),
        pearson=tuple(pearson(a[:, k], b[:, k]) for k in columns),
        concordance=tuple(concordance(a[:, k], b[:, k]) for k in columns),
        mae=errors(a),
        baselines=tuple(
            Baseline(name=name, mae=constant(value))
            for name, value in (constants | {ZEROS: np.zeros(len(names))}).items()
        ),
    )


def few_clips(names: Sequence[str], counts: Sequence[int], clips: int) -> str | None:
    """Warning that a correlation of this few clips says little, or None where there are enough.

    Args:
        names: the targets.
        counts: labelled clips of each.
        clips: how many there are.
    """
    fewest = min(counts, default=clips)
    if fewest >= FEW_CLIPS:
        return None
    few = ", ".join(f"{name} {n}" for name, n in zip(names, counts, strict=True) if n < FEW_CLIPS)
    what = f"only {clips} clip{'s' * (clips != 1)}" if set(counts) == {clips} else f"few labelled clips ({few})"
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


def _insert(header: list[str], rows: list[list[str]], at: int, title: str, cells: Sequence[str]) -> None:
    """Put a column into a table; rows without a cell get an empty one."""
    header.insert(at, title)
    for k, row in enumerate(rows):
        row.insert(at, cells[k] if k < len(cells) else "")
