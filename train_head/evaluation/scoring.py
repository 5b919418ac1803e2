"""Score a prediction file against a label file, matching clips by id; and where on the scale the errors lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.errors import ClipNameError
from cache.ids import match_ids
from cache.paths import StrPath
from train_head.data.label_format import LabelFormat, Range
from train_head.data.labels import Labels, read_labels
from train_head.errors import LabelError
from train_head.evaluation.baselines import training_mean
from train_head.evaluation.metrics import Report, evaluate

EDGES = (0.0, 1e-9, 0.25, 0.5, 0.75, 1.0)
"""Zero alone, then quarters of the scale."""


@dataclass(frozen=True)
class BinErrors:
    """Errors by how intense the label is.

    Attributes:
        names: the targets.
        edges: (bins + 1,) ascending; a bin holds its lower edge and not its upper one, the last holds both.
        count: (targets)(bins) clips that have the label.
        mae: (targets)(bins) mean absolute error, None in an empty bin.
        bias: (targets)(bins) mean of prediction - label, None in an empty bin.
    """

    names: tuple[str, ...]
    edges: tuple[float, ...]
    count: tuple[tuple[int, ...], ...]
    mae: tuple[tuple[float | None, ...], ...]
    bias: tuple[tuple[float | None, ...], ...]

    @property
    def bins(self) -> tuple[str, ...]:
        """How each bin is called: `0` for the one that holds the lowest value alone, otherwise `0.25-0.5`."""
        pairs = zip(self.edges[:-1], self.edges[1:], strict=True)
        alone = EDGES[1] * (self.edges[-1] - self.edges[0])
        return tuple(f"{low:g}" if high - low <= 2 * alone else f"{round(low, 8):g}-{high:g}" for low, high in pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        targets = {
            name: {"count": list(self.count[k]), "mae": list(self.mae[k]), "bias": list(self.bias[k])}
            for k, name in enumerate(self.names)
        }
        return {"edges": list(self.edges), "targets": targets}

    def table(self) -> str:
        """Plain-text table, one line per target and bin."""
        width = max(14, *map(len, self.names))
        lines = [f"{'':<{width}}  label       clips     MAE    bias"]
        for name, *columns in zip(self.names, self.count, self.mae, self.bias, strict=True):
            for label, count, mae, bias in zip(self.bins, *columns, strict=True):
                lines.append(f"{name:<{width}}  {label:<9}  {count:>6}  {_cell(mae)}  {_cell(bias, '+')}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Pair:
    """Predictions beside the labels of the same clips.

    Attributes:
        predicted: (clips, targets) float32.
        labels: what is true, with groups where these were asked for.
    """

    predicted: NDArray[np.float32]
    labels: Labels


def score_files(
    predictions: StrPath, labels: StrPath, form: LabelFormat | None = None, *, train: StrPath | None = None
) -> Report:
    """Compare the predictions of any tool with labels.

    Args:
        predictions: CSV with Filename and the labels' columns in any order; values on the scale of 0 to 1, or of the
            labels' range.
        labels: CSV whose clips and columns decide.
        form: how the labels are to be read.
        train: CSV of training labels, whose mean is a baseline; by default what the run folder around the predictions
            records.

    Raises:
        LabelError: a column or a clip is missing or too many; says how many and names the first five.
    """
    pair = read_pair(predictions, labels, form)
    mean, _ = training_mean(predictions, pair.labels, train, form)
    return evaluate(pair.predicted, pair.labels.values, pair.labels.names, mean)


def read_pair(predictions: StrPath, labels: StrPath, form: LabelFormat | None = None) -> Pair:
    """Read predictions in the order of the labels' clips and columns.

    Args:
        predictions: as for `score_files`.
        labels: as for `score_files`.
        form: how the labels are to be read; named targets are those of the predictions too.

    Raises:
        LabelError: a file is wrong, or a column or a clip is missing or too many; names the first five.
    """
    truth = read_labels(labels, form)
    if not truth.names:
        raise LabelError(f"{labels} has no target columns beside Filename, so there is nothing to score against")
    named = LabelFormat(targets=form.targets) if form is not None else None
    guess = read_labels(predictions, named, check_range=False)
    aligned = align(guess, truth)
    extra = [clip for clip, row in zip(guess.ids, match_rows(guess, truth), strict=True) if row is None]
    _refuse(f"{predictions} has", sorted(extra), f"that are not in {labels}")
    return Pair(aligned, truth)


def match_rows(one: Labels, other: Labels) -> list[int | None]:
    """Per clip of one file, its row in the other, however either writes its Filename; None where it has none.

    Raises:
        LabelError: a Filename may be several clips of the other, or two are one clip.
    """
    row = {name: i for i, name in enumerate(other.filenames)}
    try:
        found = match_ids(one.filenames, row)
    except ClipNameError as error:
        raise LabelError(f"{one.path} beside {other.path}: {error}") from error
    return [None if name is None else row[name] for name in found]


def align(guess: Labels, truth: Labels) -> NDArray[np.float32]:
    """Predictions as (clips, targets) in the order of the labels; clips that have no label are left out.

    Raises:
        LabelError: the columns differ, or labelled clips were not predicted; names the first five.
    """
    if set(guess.names) != set(truth.names):
        raise LabelError(
            f"{guess.path} has the columns {', '.join(guess.names)}, and {truth.path} has {', '.join(truth.names)}; "
            "name those to score with --targets"
        )
    guessed = {there: here for here, there in enumerate(match_rows(guess, truth)) if there is not None}
    _refuse(f"{guess.path} lacks", [c for i, c in enumerate(truth.ids) if i not in guessed], f"of {truth.path}")
    columns = [guess.names.index(name) for name in truth.names]
    return guess.values[[guessed[i] for i in range(len(truth))]][:, columns]


def bin_edges(span: Range) -> tuple[float, ...]:
    """`EDGES` for labels of another range, which are float32."""
    low, high = (float(np.float32(end)) for end in span)
    return (*(low + (high - low) * edge for edge in EDGES[:-1]), high)


def errors_by_bin(
    predicted: ArrayLike, target: ArrayLike, names: Sequence[str], edges: Sequence[float] = EDGES
) -> BinErrors:
    """Mean absolute error and bias by intensity: a head that always says "weak" looks good on the mean error alone.

    Args:
        predicted: (clips, targets).
        target: (clips, targets), within the edges; NaN is a missing label, which is in no bin.
        names: (targets,).
        edges: ascending, two or more.

    Raises:
        ValueError: the shapes differ, the edges do not ascend, or a label lies outside them.
    """
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != len(names):
        raise ValueError(f"predictions have shape {a.shape}, labels {b.shape}, expected both (clips, {len(names)})")
    bounds, bins = np.asarray(edges, np.float64), len(edges) - 1
    if bins < 1 or not (np.diff(bounds) > 0).all():
        raise ValueError(f"the edges of bins must ascend, got {tuple(edges)}")
    labels = b[~np.isnan(b)]
    if labels.size and not (bounds[0] <= labels.min() and labels.max() <= bounds[-1]):
        low, high = labels.min(), labels.max()
        raise ValueError(f"labels lie from {low:g} to {high:g}, outside the bins' {edges[0]:g} to {edges[-1]:g}")
    place = np.minimum(np.searchsorted(bounds, b, side="right") - 1, bins - 1)
    place[np.isnan(b)] = -1
    error, targets = a - b, range(len(names))
    where = [[place[:, k] == i for i in range(bins)] for k in targets]
    return BinErrors(
        names=tuple(names),
        edges=tuple(map(float, edges)),
        count=tuple(tuple(int(rows.sum()) for rows in where[k]) for k in targets),
        mae=tuple(tuple(_average(np.abs(error[rows, k])) for rows in where[k]) for k in targets),
        bias=tuple(tuple(_average(error[rows, k]) for rows in where[k]) for k in targets),
    )


def _average(errors: NDArray[np.float64]) -> float | None:
    return float(errors.mean()) if len(errors) else None


def _cell(value: float | None, sign: str = "") -> str:
    return "     —" if value is None else f"{value:{sign}6.3f}"


def _refuse(what: str, clips: Sequence[str], where: StrPath) -> None:
    if clips:
        raise LabelError(f"{what} {len(clips)} clips {where} (first: {', '.join(clips[:5])})")
