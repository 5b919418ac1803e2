"""Match a prediction file with a label file by clip id, and measure errors along the scale of the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.paths import StrPath
from train_head.data.label_format import LabelFormat, Range
from train_head.data.labels import Labels
from train_head.data.matching import align, match_clips, predicted_rows, refuse_clips
from train_head.data.reading import read_any_labels
from train_head.errors import LabelError
from train_head.evaluation.metrics import CLIPS, as_columns
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

    def table(self, counted: str = CLIPS) -> str:
        """Return a plain-text table, one line per target and bin; `counted` are "clips" or "rows"."""
        rows = [
            [name, label, str(count), cell(mae, undefined="—"), cell(bias, "+", "—")]
            for name, found in self.targets.items()
            for label, count, mae, bias in zip(self.bins, *found.values(), strict=True)
        ]
        return text_table(["", "label", counted, "MAE", "bias"], rows)


def read_pair(
    predictions: StrPath, labels: StrPath, form: LabelFormat | None = None
) -> tuple[NDArray[np.float32], Labels]:
    """Read predictions in the order of the labels' clips, rows and columns.

    Args:
        predictions: from any tool, in the layout of the labels, with their columns in any order; values on the labels'
            scale.
        labels: CSV, or labels per frame, which decide which clips and columns are compared.
        form: how the labels are to be read; named targets apply to the predictions too.

    Returns:
        (clips, targets) predictions, and the labels of the same clips. For labels per frame, (rows, targets), and the
        labels of the rows that were predicted; their `cut` names clips that lack a few.

    Raises:
        LabelError: a file is wrong, or the two differ in columns, in clips, or by many rows of a clip; names the first
            five.
    """
    truth = read_any_labels(labels, form)
    if not truth.names:
        raise LabelError(f"{labels} has no target columns beside Filename, so there is nothing to score against")
    named = LabelFormat(targets=form.targets) if form is not None else None
    guess = read_any_labels(predictions, named, check_range=False)
    extra = [clip for clip, found in zip(guess.ids, match_clips(guess, truth), strict=True) if found is None]
    truth = predicted_rows(truth, guess)
    aligned = align(guess, truth)
    refuse_clips(f"{predictions} has", sorted(extra), f"that are not in {labels}")
    return aligned, truth


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
