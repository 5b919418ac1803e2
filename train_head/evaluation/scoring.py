"""Match a prediction file with a label file by clip id, and measure errors along the scale of the labels."""

from collections.abc import Mapping, Sequence
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
from train_head.evaluation.metrics import as_columns
from train_head.reports.tables import cell, text_table

EDGES = (0.0, 1e-9, 0.25, 0.5, 0.75, 1.0)
"""Edges of the bins: exactly zero, then quarters of the scale."""


@dataclass(frozen=True)
class BinErrors:
    """Errors by intensity of the label.

    Attributes:
        edges: (bins + 1,) ascending; a bin includes its lower edge, and only the last one its upper edge.
        targets: per target and bin: `count`, the clips that have the label; `mae`, the mean absolute error; `bias`, the
            mean of prediction - label. The last two are None in an empty bin.
    """

    edges: tuple[float, ...]
    targets: Mapping[str, Mapping[str, Sequence[Any]]]

    @property
    def bins(self) -> tuple[str, ...]:
        """Names of the bins: `0` for the one that holds only the lowest value, otherwise such as `0.25-0.5`."""
        pairs = zip(self.edges[:-1], self.edges[1:], strict=True)
        narrow = 2 * EDGES[1] * (self.edges[-1] - self.edges[0])
        return tuple(f"{low:g}" if high - low <= narrow else f"{round(low, 8):g}-{high:g}" for low, high in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
        return {"edges": list(self.edges), "targets": self.targets}

    def table(self) -> str:
        """Return a plain-text table, one line per target and bin."""
        rows = [
            [name, label, str(count), cell(mae, undefined="—"), cell(bias, "+", "—")]
            for name, found in self.targets.items()
            for label, count, mae, bias in zip(self.bins, *found.values(), strict=True)
        ]
        return text_table(["", "label", "clips", "MAE", "bias"], rows)


def read_pair(
    predictions: StrPath, labels: StrPath, form: LabelFormat | None = None
) -> tuple[NDArray[np.float32], Labels]:
    """Read predictions in the order of the labels' clips and columns.

    Args:
        predictions: CSV from any tool, with Filename and the labels' columns in any order; values on the labels' scale.
        labels: CSV that decides which clips and columns are compared.
        form: how the labels are to be read; named targets apply to the predictions too.

    Returns:
        (clips, targets) predictions, and the labels of the same clips.

    Raises:
        LabelError: a file is wrong, or the two differ in columns or clips; names the first five.
    """
    truth = read_labels(labels, form)
    if not truth.names:
        raise LabelError(f"{labels} has no target columns beside Filename, so there is nothing to score against")
    named = LabelFormat(targets=form.targets) if form is not None else None
    guess = read_labels(predictions, named, check_range=False)
    aligned = align(guess, truth)
    extra = [clip for clip, row in zip(guess.ids, match_rows(guess, truth), strict=True) if row is None]
    _refuse(f"{predictions} has", sorted(extra), f"that are not in {labels}")
    return aligned, truth


def match_rows(one: Labels, other: Labels) -> list[int | None]:
    """Return the row of each clip in another file, matched by clip id; None where it has none.

    Args:
        one: labels or predictions whose clips are looked for.
        other: labels or predictions in which they are looked for.

    Raises:
        LabelError: a Filename matches several clips of the other file, or two Filenames are one clip.
    """
    row = {name: i for i, name in enumerate(other.filenames)}
    try:
        found = match_ids(one.filenames, row)
    except ClipNameError as error:
        raise LabelError(f"{one.path} beside {other.path}: {error}") from error
    return [None if name is None else row[name] for name in found]


def align(guess: Labels, truth: Labels) -> NDArray[np.float32]:
    """Return predictions as (clips, targets) in the order of the labels; clips without a label are left out.

    Args:
        guess: predictions.
        truth: labels, which decide on clips, columns and order.

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
    """Return `EDGES` scaled to another range of labels, rounded to float32 as the labels are."""
    low, high = (float(np.float32(end)) for end in span)
    return (*(low + (high - low) * edge for edge in EDGES[:-1]), high)


def errors_by_bin(
    predicted: ArrayLike, target: ArrayLike, names: Sequence[str], edges: Sequence[float] = EDGES
) -> BinErrors:
    """Compute mean absolute error and bias by intensity: always predicting low values can give a low mean error.

    Args:
        predicted: (clips, targets).
        target: (clips, targets), within the edges; NaN is a missing label, which is in no bin.
        names: (targets,).
        edges: ascending, two or more.

    Raises:
        ValueError: the shapes differ, the edges do not ascend, or a label lies outside them.
    """
    a, b = as_columns(predicted, target, names)
    bounds, bins = np.asarray(edges, np.float64), len(edges) - 1
    if bins < 1 or not (np.diff(bounds) > 0).all():
        raise ValueError(f"the edges of bins must ascend, got {tuple(edges)}")
    labels = b[~np.isnan(b)]
    if labels.size and not (bounds[0] <= labels.min() and labels.max() <= bounds[-1]):
        low, high = labels.min(), labels.max()
        raise ValueError(f"labels lie from {low:g} to {high:g}, outside the bins' {edges[0]:g} to {edges[-1]:g}")
    place = np.minimum(np.searchsorted(bounds, b, side="right") - 1, bins - 1)
    place[np.isnan(b)] = -1
    targets: dict[str, dict[str, list[Any]]] = {}
    for k, name in enumerate(names):
        errors = [(a - b)[place[:, k] == i, k] for i in range(bins)]
        targets[name] = {
            "count": [len(e) for e in errors],
            "mae": [float(np.abs(e).mean()) if len(e) else None for e in errors],
            "bias": [float(e.mean()) if len(e) else None for e in errors],
        }
    return BinErrors(edges=tuple(map(float, edges)), targets=targets)


def _refuse(what: str, clips: Sequence[str], where: StrPath) -> None:
    if clips:
        raise LabelError(f"{what} {len(clips)} clips {where} (first: {', '.join(clips[:5])})")
