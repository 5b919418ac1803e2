"""Pictures of a run: how its epochs went, and predictions against labels, each as SVG and as PNG.

Drawn with matplotlib's objects on separate canvases: no window, no pyplot, none of the caller's styles. Equal numbers
give equal bytes.
"""

import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cache.system.atomic_file import write_atomically
from train_head.data.label_format import UNIT, Range
from train_head.data.labels import Labels
from train_head.data.predictions import prediction_file, read_predictions
from train_head.evaluation.metrics import Column, as_columns, pearson
from train_head.reports.tables import OVER_TARGETS, cell
from train_head.targets import SCORES, mean_score, recorded_score, target_scores

_LOG = logging.getLogger("matplotlib")
_LEVEL = _LOG.level
_LOG.setLevel(logging.ERROR)  # the first import on a machine says that it builds a font cache
from matplotlib import style  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

_LOG.setLevel(_LEVEL)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#6A3D9A")
"""Six of the colours of Okabe and Ito (2008), told apart with any colour vision, then a brown and a violet."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))
"""Of the first eight targets, the second eight, and so on."""
STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "emi",
}
SUFFIXES = (".svg", ".png")
MARGIN = 0.04
"""Space around the labels, as a share of their range."""
GREY, POINTS, ZEROS = "#6E6E6E", "#0072B2", "#B84A00"
VECTORS = 1000
"""Clips up to which an SVG holds each point; with more it holds an image of them, which is smaller."""
MANY_ZEROS = 0.05
"""Share of labels that are the least from which their predictions are drawn as a distribution too."""


def draw_run(folder: Path, history: Sequence[Mapping[str, Any]], labels: Mapping[str, Labels]) -> None:
    """Draw the pictures of a finished run into its folder: curves, and a scatter of each split with targets.

    Args:
        folder: run folder, with the predictions of every split that is to be drawn.
        history: one record per epoch.
        labels: by split; the rows that were predicted.
    """
    curves(history, folder / "curves")
    for name, split in labels.items():
        predictions = prediction_file(folder, name, split)
        if split.names and predictions.exists():
            values = read_predictions(predictions, split)
            scatter(values, split.values, split.names, folder / f"scatter_{name}", split.range)


def curves(history: Sequence[Mapping[str, Any]], path: Path) -> tuple[Path, ...]:
    """Draw training loss and validation Pearson by epoch: the mean thick, each target thin, the best epoch marked.

    Args:
        history: one record per epoch, as in metrics.jsonl; a Pearson may be None, and is then a gap.
        path: where, without suffix; `.svg` and `.png` are written, each in one atomic step.

    Returns:
        The two files.
    """
    epochs = [record["epoch"] for record in history]
    at = max(range(len(history)), key=lambda i: (history[i]["best"], history[i]["epoch"]))
    with drawing():
        figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
        losses = [record["train_loss"] for record in history]
        left.plot(epochs, losses, color="black", linewidth=1.8)
        left.plot(epochs[at], losses[at], "o", color="black")
        if min(losses) > 0 and max(losses) > 30 * min(losses):
            left.set_yscale("log")
        left.set_title("training loss", loc="left")
        handles, texts = _score_lines(right, history, at)
        for axes in (left, right):
            axes.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.axvline(epochs[at], color=GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        if handles:
            figure.legend(handles, texts, loc="outside right center", title=f"best epoch: {epochs[at]}", fontsize=9)
        return save(figure, path)


def _score_lines(axes: Axes, history: Sequence[Mapping[str, Any]], at: int) -> tuple[list[Line2D], list[str]]:
    """Draw them; return handles and texts of a legend with the values at the best epoch, the best target first."""
    epochs = [record["epoch"] for record in history]
    names = list(target_scores(history[-1]))
    axes.set_title(f"validation {SCORES[recorded_score(history[-1])]}", loc="left")
    mean = np.array([mean_score(record) for record in history], np.float64)  # None becomes NaN, a gap
    if np.isnan(mean).all():
        axes.text(0.5, 0.5, "undefined" if names else "not watched", transform=axes.transAxes, ha="center")
        return [], []
    entries: list[tuple[float, Line2D, str]] = []
    for k, name in enumerate(names):
        column = np.array([target_scores(record).get(name) for record in history], np.float64)
        colour, dashes = COLOURS[k % len(COLOURS)], DASHES[k // len(COLOURS) % len(DASHES)]
        (line,) = axes.plot(epochs, column, color=colour, linestyle=dashes, linewidth=1.2, marker=".", markersize=2.5)
        axes.plot(epochs[at], column[at], "o", color=colour, markersize=3)
        entries.append((column[at], line, name))
    entries.sort(key=lambda entry: -np.nan_to_num(entry[0], nan=-2.0))
    if len(names) > 1:
        (line,) = axes.plot(epochs, mean, color="black", linewidth=2.4)
        axes.plot(epochs[at], mean[at], "o", color="black")
        entries.insert(0, (mean[at], line, OVER_TARGETS))
    return [line for _, line, _ in entries], [f"{number_text(value)}  {short_name(name)}" for value, _, name in entries]


def scatter(
    predicted: ArrayLike, target: ArrayLike, names: Sequence[str], path: Path, span: Range = UNIT
) -> tuple[Path, ...]:
    """Draw a panel per target: label against prediction of every clip, and the line on which they are equal.

    Many labels are exactly the least one, and their points cover each other: left of it stands the distribution of
    their predictions.

    Args:
        predicted: (clips, targets).
        target: (clips, targets); NaN is a missing label, and no point.
        names: (targets,).
        path: where, without suffix; `.svg` and `.png` are written, each in one atomic step.
        span: ends of the labels' scale.

    Returns:
        The two files.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = as_columns(predicted, target, names)
    columns = len(names) if len(names) <= 4 else 3 if len(names) in (5, 6, 9) else 4
    rows = math.ceil(len(names) / columns)
    low, high = min(span[0], a.min(initial=span[0])), max(span[1], a.max(initial=span[1]))
    margin = MARGIN * (span[1] - span[0])
    with drawing():
        figure = Figure(figsize=(max(3.0, 2.25 * columns), 2.45 * rows + 0.2), dpi=150, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for k, name in enumerate(names):
            value = pearson(a[:, k], b[:, k])
            panels[k].set_title(
                f"{short_name(name)}\nr {'undefined' if value is None else number_text(value)}", loc="left"
            )
            panels[k].set_ylim(low - margin, high + margin)
            panels[k].tick_params(labelleft=k % columns == 0, labelbottom=k + columns >= len(names), length=2)
            known = ~np.isnan(b[:, k])
            _panel(panels[k], a[known, k], b[known, k], np.linspace(low, high, 41), span)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("label", fontsize=9)
        figure.supylabel("prediction", fontsize=9)
        return save(figure, path)


def _panel(axes: Axes, predicted: Column, target: Column, edges: Column, span: Range) -> None:
    """Draw the points of one target, and the histogram of predictions where its label is the lowest."""
    (low, high), margin = span, MARGIN * (span[1] - span[0])
    alpha = float(np.clip(12 / math.sqrt(max(1, len(target))), 0.12, 0.7))
    axes.plot(span, span, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=3)
    axes.scatter(target, predicted, s=9, color=POINTS, alpha=alpha, linewidths=0, rasterized=len(target) > VECTORS)
    axes.set(xticks=[low, (low + high) / 2, high], xlim=(low - margin, high + margin))
    lowest = predicted[target == low]
    if len(lowest) < 2 or len(lowest) < MANY_ZEROS * len(target):
        return
    counts, _ = np.histogram(lowest, edges)
    wall = low - margin
    bars = wall - 5 * margin * counts / counts.max()
    axes.stairs(bars, edges, baseline=wall, orientation="horizontal", fill=True, color=ZEROS)
    axes.set_xlim(low - 6.5 * margin, high + margin)
    share = f"{100 * len(lowest) / len(target):.0f} % are {low:g}"
    axes.text(0.02, 0.98, share, transform=axes.transAxes, va="top", fontsize=8, color=ZEROS)


def intervals(
    panels: Mapping[str, Sequence[tuple[str, float | None, float | None, float | None]]], path: Path
) -> tuple[Path, ...]:
    """Draw numbers with their intervals, one line each.

    Args:
        panels: by title, (name, number, low, high) from top to bottom; None is left out.
        path: as for `curves`.
    """
    with drawing():
        height = 1.1 + 0.34 * max(map(len, panels.values()))
        figure = Figure(figsize=(9, height), dpi=150, layout="constrained")
        for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for at, (_, number, low, high) in enumerate(rows):
                if low is not None and high is not None:
                    axes.plot([low, high], [at, at], color=POINTS, linewidth=2, alpha=0.5, solid_capstyle="butt")
                if number is not None:
                    axes.plot(number, at, "o", color=POINTS)
                    axes.annotate(
                        number_text(number), (number, at), (0, 5), textcoords="offset points", ha="center", fontsize=8
                    )
            axes.axvline(0, color=GREY, linewidth=1)
            axes.set_yticks(range(len(rows)), [short_name(name) for name, *_ in rows])
            axes.set(ylim=(len(rows) - 0.5, -0.7))
            axes.set_title(title, loc="left")
        return save(figure, path)


def save(figure: Figure, path: Path) -> tuple[Path, ...]:
    """Write `path` with `.svg` and with `.png`, each in one atomic step, and return the two."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what it found stays, and is not looked for again in each format
    pixels = io.BytesIO()
    FigureCanvasAgg(figure).print_png(pixels, metadata={"Software": None})
    written = tuple(path.with_name(path.name + suffix) for suffix in SUFFIXES)
    for file, content in zip(written, (_vector(figure), pixels.getvalue()), strict=True):
        write_atomically(file, content)
    return written


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element for an HTML page."""
    text = _vector(figure).decode()
    return text[text.index("<svg") :]


def _vector(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})  # leaves the figure at 72 dpi
    return buffer.getvalue()


@contextmanager
def drawing() -> Iterator[None]:
    """Apply matplotlib's default style and ours, and restore the caller's afterwards."""
    with style.context(["default", dict(STYLE)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def number_text(value: float | None) -> str:
    """Return three digits with a typographic minus, or the word for a number that is undefined."""
    return cell(None if value is None or math.isnan(value) else value).replace("-", "−")


def short_name(name: str, most: int = 24) -> str:
    """Return the name, or its two ends where it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"
