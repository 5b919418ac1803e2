"""Metrics, intervals and differences of predictions of some labels: rows are scored, and clips or groups resampled."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train_head.data.labels import Labels
from train_head.data.matching import labelled_rows
from train_head.errors import LabelError
from train_head.evaluation.intervals import Difference, bootstrap, paired_bootstrap
from train_head.evaluation.metrics import CLIPS, GROUPS, ROWS, Intervals, Report, evaluate

Values = NDArray[np.floating]
"""(clips, targets), or (label rows, targets) for labels per frame."""


def report_of(predicted: Values, labels: Labels, train_mean: ArrayLike | None = None) -> Report:
    """Return the metrics of predictions over all rows of their labels; `train_mean` as for `evaluate`."""
    report = evaluate(predicted, labels.values, labels.names, train_mean)
    return replace(report, counted=ROWS) if labels.by_frame else report


def reports_by_clip(predicted: Values, labels: Labels) -> dict[str, Report]:
    """Return the metrics within each clip of labels per frame."""
    parts = {name: labels.rows_of([i]) for i, name in enumerate(labels.filenames)}
    return {
        name: replace(evaluate(predicted[rows], labels.values[rows], labels.names), counted=ROWS)
        for name, rows in parts.items()
    }


def several_groups(labels: Labels) -> tuple[str, ...] | None:
    """Return the groups of clips, where there are at least two to resample."""
    return labels.groups if labels.groups is not None and len(set(labels.groups)) > 1 else None


def check_units(labels: Labels) -> None:
    """Refuse labels per frame of a single clip, of which nothing can be resampled.

    Raises:
        LabelError: there is one clip.
    """
    if labels.by_frame and len(labels) < 2:
        raise LabelError(
            f"{labels.path} has the labels of one clip, and differences are judged over clips; give two or more"
        )


def intervals_of(predicted: Values, labels: Labels, groups: Sequence[str] | None) -> Intervals:
    """Compute intervals of the score of some labels; of labels per frame, whole clips or groups are resampled.

    Labels per frame of a single clip have a score, and no interval.

    Args:
        predicted: of all rows.
        labels: of a split.
        groups: (clips,) that are resampled as wholes; None where single clips are.

    Raises:
        LabelError: all clips are of one group.
    """
    score = labels.targets.score
    if not labels.by_frame:
        return bootstrap(predicted, labels.values, labels.names, groups, metric=score)
    units, rows = _units(labels, groups)
    if groups is None and len(labels) < 2:
        found = bootstrap(predicted[rows], labels.values[rows], labels.names, metric=score, resamples=1)
        nothing = (None,) * len(labels.names)
        found = replace(found, low=nothing, high=nothing, mean_low=None, mean_high=None, groups=len(labels))
    else:
        found = bootstrap(predicted[rows], labels.values[rows], labels.names, units, metric=score)
    return replace(found, counted=ROWS, units=CLIPS if groups is None else GROUPS)


def difference_of(
    a: Values,
    b: Values,
    labels: Labels,
    groups: Sequence[str] | None,
    *,
    metric: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare two predictions of some labels; of labels per frame, whole clips or groups are resampled.

    Args:
        a: of all rows.
        b: of all rows.
        labels: of a split.
        groups: (clips,) that are resampled as wholes; None where single clips are.
        metric: "pearson", "ccc" or "mae"; the score of the labels by default.
        resamples: number of resamples.
        seed: of the draws.

    Raises:
        LabelError: all clips are of one group, or there is one clip of labels per frame.
    """
    how = {"metric": metric or labels.targets.score, "resamples": resamples, "seed": seed}
    if not labels.by_frame:
        return paired_bootstrap(a, b, labels.values, labels.names, groups, **how)  # type: ignore[arg-type]
    check_units(labels)
    units, rows = _units(labels, groups)
    found = paired_bootstrap(a[rows], b[rows], labels.values[rows], labels.names, units, **how)  # type: ignore[arg-type]
    test = replace(found.test, grouped=groups is not None)
    return replace(found, counted=ROWS, units=CLIPS if groups is None else GROUPS, test=test)


def _units(labels: Labels, groups: Sequence[str] | None) -> tuple[list[str], NDArray[np.bool_]]:
    """Return what each labelled row belongs to, its group or its clip, and (rows,) which rows are labelled."""
    units = np.repeat(np.array(groups or labels.ids, dtype=object), labels.lengths)
    rows = labelled_rows(labels)
    return units[rows].tolist(), rows
