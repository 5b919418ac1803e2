"""The picture of labels and predictions over time: a few clips of labels per frame, a panel for each target."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from train_head.data.clock import LabelClock
from train_head.data.splits import Split
from train_head.evaluation.labelled import Values, reports_by_clip
from train_head.evaluation.metrics import Report, mean_of
from train_head.reports.figures import MARGIN, ZEROS, drawing, number_text, save, short_name

MOST = 6
"""Clips that are drawn."""
LABEL, PREDICTION = "#222222", ZEROS
NOT_ANNOTATED, NOT_FOUND = "#DDDDDD", "#BFD9EC"
POINTS = 2000
"""Label rows of a clip from which an SVG holds an image of its lines, which is smaller."""
STRETCHES = 100
"""Stretches without labels from which it holds an image of them."""


def draw_traces(folder: Path, name: str, predicted: Values, split: Split, fps: float) -> None:
    """Draw `traces_NAME` into a folder of one or several runs; nothing where there are no labels per frame.

    Args:
        folder: that holds the predictions.
        name: of the split, or "folds".
        predicted: as for `traces`.
        split: as for `traces`.
        fps: as for `traces`.
    """
    if split.labels.by_frame and split.labels.names:
        traces(predicted, split, fps, folder / f"traces_{name}")


def traces(predicted: Values, split: Split, fps: float, path: Path) -> tuple[Path, ...]:
    """Draw labels and predictions of up to six clips over time, from the highest CCC to the lowest.

    Rows that are not annotated are shaded, as are rows for which a stream has nothing, such as no face.

    Args:
        predicted: (label rows, targets) of all clips, on the labels' scale.
        split: the clips, with labels per frame that have targets.
        fps: label rows per second; 0 where something else says when they are.
        path: where, without suffix; `.svg` and `.png` are written, each in one atomic step.

    Returns:
        The two files.
    """
    labels, clock = split.labels, LabelClock(fps, list(split.streams.values()))
    reports = list(reports_by_clip(predicted, labels).values())
    missing = {name: ~found for name, found in split.found().items() if not found.all()}
    shown = [(i, clock.seconds(labels, i)) for i in chosen_clips(reports)]
    with drawing():
        size = (max(6.0, 4.6 * len(labels.names)), 0.7 + 1.5 * len(shown))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        panels = figure.subplots(len(shown), len(labels.names), squeeze=False, sharey=True)
        for row, (clip, seconds) in zip(panels, shown, strict=True):
            rows = labels.rows_of([clip])
            nothing = np.any([lacking[rows] for lacking in missing.values()], axis=0) if missing else None
            for k, axes in enumerate(row):
                _panel(axes, seconds, labels.values[rows, k], predicted[rows, k], nothing)
                score = number_text(reports[clip].concordance[k])
                axes.set_title(f"{short_name(labels.filenames[clip])}  {labels.names[k]}, CCC {score}", loc="left")
        (low, high), margin = labels.range, MARGIN * (labels.range[1] - labels.range[0])
        panels[0, 0].set(ylim=(low - margin, high + margin), yticks=[low, (low + high) / 2, high])
        for axes in panels[-1]:
            axes.set_xlabel("seconds")
        order = "spread evenly over the ranking" if len(labels) > len(shown) else "ranked"
        figure.suptitle(f"{len(shown)} of {len(labels)} clips, {order} by mean CCC, the best first", fontsize=9)
        handles = [*panels[0, 0].lines[:2], Patch(color=NOT_ANNOTATED), *[Patch(color=NOT_FOUND)] * bool(missing)]
        texts = ["label", "prediction", "not annotated", f"nothing found: {', '.join(missing)}".rstrip(": ")]
        figure.legend(handles, texts[: len(handles)], loc="outside lower center", ncols=4)
        return save(figure, path)


def chosen_clips(reports: Sequence[Report]) -> list[int]:
    """Return the numbers of the clips that are drawn, spread evenly over the ranking by CCC, the best first.

    Clips without a CCC come last, where fewer than six have one.

    Args:
        reports: of each clip.
    """
    scores = {i: mean_of(report.concordance) for i, report in enumerate(reports)}
    ranked = sorted((i for i, score in scores.items() if score is not None), key=lambda i: -(scores[i] or 0.0))
    if len(ranked) < MOST:
        return (ranked + [i for i, score in scores.items() if score is None])[:MOST]
    return [ranked[place] for place in np.linspace(0, len(ranked) - 1, MOST).round().astype(int)]


def _panel(
    axes: Axes,
    seconds: NDArray[np.float64],
    label: NDArray[np.float32],
    predicted: NDArray[np.floating],
    nothing: NDArray[np.bool_] | None,
) -> None:
    """Draw one target of one clip; every row lasts to the next.

    Args:
        axes: where.
        seconds: (label rows,) when each row is.
        label: (label rows,), NaN where it is not annotated.
        predicted: (label rows,).
        nothing: (label rows,) whether a stream has nothing there.
    """
    raster = len(seconds) > POINTS
    for values, colour, width in ((label, LABEL, 1.2), (predicted, PREDICTION, 0.6 if raster else 1.2)):
        alone = _alone(values)
        points: dict[str, Any] = {"marker": ".", "markersize": 3, "markevery": alone} if alone else {}
        axes.plot(seconds, values, color=colour, linewidth=width, rasterized=raster, **points)
    axes.grid(visible=False, axis="x")
    _shade(axes, seconds, np.isnan(label), NOT_ANNOTATED, (0.0, 1.0))
    if nothing is not None:
        _shade(axes, seconds, nothing, NOT_FOUND, (0.0, 0.12))


def _alone(values: NDArray[np.floating]) -> list[int]:
    """Return the rows without a neighbour, of which a line shows nothing."""
    known = np.concatenate([[False], ~np.isnan(values), [False]])
    return [int(row) for row in np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])]


def _shade(
    axes: Axes, seconds: NDArray[np.float64], rows: NDArray[np.bool_], colour: str, height: tuple[float, float]
) -> None:
    """Shade stretches of rows, over a part of the panel's height."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(np.int8))).reshape(-1, 2)
    starts, ends = seconds[edges[:, 0]], np.append(seconds, seconds[-1:])[edges[:, 1]]
    axes.broken_barh(
        np.stack([starts, ends - starts], axis=1).tolist(),
        (height[0], height[1] - height[0]),
        transform=axes.get_xaxis_transform(),
        facecolors=colour,
        linewidth=0,
        zorder=0,
        rasterized=len(edges) > STRETCHES,
    )
