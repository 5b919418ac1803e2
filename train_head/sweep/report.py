"""report.html of a sweep: one file with its pictures inside, which opens without network."""

import html
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cache.system.atomic_file import write_atomically
from train_head.reports.figures import COLOURS, GREY, drawing, svg
from train_head.reports.tables import OVER_TARGETS, cell
from train_head.sweep.result import SweepResult, pearson, short, state_name
from train_head.sweep.storage import OUTCOME, counted

REPORT = "report.html"
FEWEST = 20
"""Trials below which no importance is told: PED-ANOVA compares the best tenth with all, and needs two trials in it."""
ROWS = 200
"""Trials listed in the report at most, the best first; trials.csv has all."""
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .86rem; } .wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:last-child, td:last-child, td.text { text-align: left; } svg { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; } .note { color: #555; }
"""


def write_report(result: SweepResult, study: Study, settings: Mapping[str, Any], best_toml: str) -> None:
    """Write report.html into the sweep's folder.

    Args:
        result: of the sweep.
        study: its trials.
        settings: how the sweep went about it, for the heading.
        best_toml: settings of the best head.
    """
    trials = counted(study)
    status = result.status
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    importance = importances(trials)
    parts = [
        f"<h1>Sweep of {status.finished} trials</h1>",
        f"<p>{status.complete} complete, {status.pruned} pruned, {status.failed} failed ({html.escape(said)}). The "
        "value of a trial is the mean validation Pearson of its best epoch.</p>",
        "<h2>The best</h2>",
        _best_table(result) if result.retrained else "<p>No trial was trained again.</p>",
        f'<p class="note">{html.escape(result.agreement_line())}</p>',
        "<p>Settings of the first, which <code>emi train-head --config best.toml</code> takes:</p>",
        f"<pre>{html.escape(best_toml)}</pre>",
        "<h2>History</h2>",
        history(trials),
        "<h2>Parallel coordinates</h2>",
        '<p class="note">One line per trial, the better the darker, dotted where it was pruned; a line skips the '
        "axis of a setting that its head does not have.</p>",
        parallel_coordinates(trials),
        "<h2>Importance</h2>",
        '<p class="note">PED-ANOVA: how much a setting tells the best trials apart from the others, the pruned ones as '
        "far as they came; a setting of one head, among the trials with that head.</p>",
        bars(importance) if importance else f"<p>It takes {FEWEST} trials that differ in value to tell.</p>",
        "<h2>Trials</h2>",
        _trials_table(trials),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>emi sweep</title>'
        f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    write_atomically(result.folder / REPORT, page.encode())


def importances(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """How much each setting matters, the most important first; empty where that cannot be told."""
    values = [(trial, value) for trial in trials if (value := pearson(trial)) is not None]
    if len(values) < FEWEST:
        return {}
    study = optuna.create_study(direction="maximize", study_name="all that came far enough to have a value")
    study.add_trials(
        [optuna.create_trial(params=t.params, distributions=t.distributions, value=value) for t, value in values]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # all values equal, or no common setting
            return {}


def history(trials: Sequence[FrozenTrial]) -> str:
    """SVG: the value of each trial, and the best so far."""
    with drawing():
        figure = Figure(figsize=(9, 3), layout="constrained")
        axes = figure.subplots()
        for state, colour, marker in (("complete", COLOURS[0], "o"), ("pruned", GREY, "x")):
            of = [(t.number, value) for t in trials if state_name(t) == state and (value := pearson(t)) is not None]
            numbers, values = [number for number, _ in of], [value for _, value in of]
            axes.scatter(numbers, values, s=14, color=colour, marker=marker, label=state)
            if state == "complete":
                best = list(accumulate(values, max))
                axes.step(numbers, best, where="post", color=COLOURS[1], label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel("validation Pearson")
        axes.legend(loc="lower right", frameon=True)
        return svg(figure)


def parallel_coordinates(trials: Sequence[FrozenTrial]) -> str:
    """SVG: one axis per setting, one line per trial that has a value."""
    shown = [(trial, value) for trial in trials if (value := pearson(trial)) is not None]
    shown.sort(key=lambda pair: pair[1])
    names = list(dict.fromkeys(name for trial, _ in shown for name in trial.params))
    if not shown or not names:
        return "<p>No trial has a value.</p>"
    low, high = shown[0][1], shown[-1][1]
    with drawing():
        figure = Figure(figsize=(max(6.0, 1.35 * (len(names) + 1)), 4), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False)
        scales = [_scale(name, [trial for trial, _ in shown]) for name in names]
        for trial, value in shown:
            share = (value - low) / (high - low) if high > low else 1.0
            xs = [x for x, name in enumerate(names) if name in trial.params]
            ys = [scales[x][0](trial.params[names[x]]) for x in xs]
            colour = tuple(np.array([0.80, 0.85, 0.90]) * (1 - share) + np.array([0.0, 0.2, 0.45]) * share)
            dashes = "-" if trial.state == TrialState.COMPLETE else (0, (1, 1.5))
            axes.plot([*xs, len(names)], [*ys, share], color=colour, linestyle=dashes, linewidth=0.8 + 0.8 * share)
        ticks = [*(scale[1] for scale in scales), [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")]]
        for x, marks in enumerate(ticks):
            axes.axvline(x, color=GREY, linewidth=0.8)
            for y, text in marks:
                axes.text(
                    x + 0.03,
                    y,
                    text,
                    fontsize=7,
                    va="center",
                    bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.6},
                )
        axes.set_xticks(range(len(ticks)), [*names, "Pearson"], rotation=25, ha="right")
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.1, len(names) + 0.45)
        return svg(figure)


def bars(importance: Mapping[str, float]) -> str:
    """SVG: one bar per setting."""
    with drawing():
        figure = Figure(figsize=(7, 0.5 + 0.28 * len(importance)), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(importance)[::-1], list(importance.values())[::-1], color=COLOURS[0], height=0.6)
        axes.set_xlabel("share of the importance")
        axes.grid(axis="y", visible=False)
        return svg(figure)


def _scale(name: str, trials: Sequence[FrozenTrial]) -> tuple[Any, list[tuple[float, str]]]:
    """Where a value of a setting stands on its axis, from 0 to 1, and the marks of the axis."""
    distribution = next(trial.distributions[name] for trial in trials if name in trial.distributions)
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        of = {choice: i / max(1, len(choices) - 1) for i, choice in enumerate(choices)}
        return of.__getitem__, [(y, str(choice)) for choice, y in of.items()]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    bend = np.log if distribution.log else float
    low, high = bend(distribution.low), bend(distribution.high)
    width = (high - low) or 1.0
    middle = np.exp((low + high) / 2) if distribution.log else (low + high) / 2
    marks = [(0.0, f"{distribution.low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{distribution.high:.3g}")]
    return lambda value: float((bend(value) - low) / width), marks


def _best_table(result: SweepResult) -> str:
    head = ("trial", "as trial", "mean over seeds", "std over seeds", "ensemble", "95 % interval", "settings")
    rows = []
    for one in result.retrained:
        valid = one.result.valid
        interval = f"{cell(valid.intervals.mean_low)} to {cell(valid.intervals.mean_high)}"
        figures = (one.trial_pearson, valid.mean, valid.std, valid.report.mean_pearson)
        rows.append((one.number, *map(cell, figures), interval, short(one.values)))
    seeds = len(result.retrained[0].result.members)
    scored = result.retrained[0].result.valid
    note = (
        f"Trained again on all clips and full features with {seeds} seeds each. Pearson, {OVER_TARGETS}: as a trial, "
        "over the seeds, and of their averaged predictions (ensemble) with a bootstrap interval."
    )
    warnings = "".join(
        f'<p class="note">{html.escape(text)}</p>' for text in (*scored.report.notes, *scored.intervals.warnings)
    )
    return f'<p class="note">{note}</p>{_table(head, rows)}{warnings}'


def _trials_table(trials: Sequence[FrozenTrial]) -> str:
    listed = sorted(trials, key=lambda t: (t.state != TrialState.COMPLETE, -(pearson(t) or -2.0), t.number))
    rows = []
    for trial in listed[:ROWS]:
        outcome = trial.user_attrs.get(OUTCOME, {})
        text = outcome.get("reason") or short(trial.params)
        rows.append(
            (
                trial.number,
                state_name(trial),
                cell(pearson(trial)),
                outcome.get("epochs", ""),
                outcome.get("seconds", ""),
                text,
            )
        )
    more = f'<p class="note">and {len(trials) - ROWS} more, in trials.csv</p>' if len(trials) > ROWS else ""
    return (
        _table(("trial", "state", f"Pearson, {OVER_TARGETS}", "epochs", "seconds", "settings, or why it failed"), rows)
        + more
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(text))}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
