"""report.html of a sweep: one file with its pictures inside, which opens without network."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import optuna
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from optuna import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cache.system.atomic_file import write_atomically
from train_head.reports.figures import COLOURS, GREY, drawing, svg
from train_head.reports.tables import OVER_TARGETS, cell
from train_head.sweep.result import Retrained, SweepResult, short, state_name, trial_score
from train_head.sweep.storage import OUTCOME, counted

REPORT, TEMPLATE = "report.html", "report_template.html"
FEWEST = 20
"""Trials below which importance is not computed: PED-ANOVA compares the best tenth with all; that must be two."""
ROWS = 200
"""Trials listed in the report at most, best first; trials.csv has all."""


def write_report(result: SweepResult, study: Study, settings: Mapping[str, Any], best_toml: str) -> None:
    """Write report.html into the sweep's folder.

    Args:
        result: of the sweep.
        study: its trials.
        settings: of the sweep, for the first paragraph.
        best_toml: settings of the best head.
    """
    trials = counted(study)
    ranked = sorted(trials, key=lambda t: (t.state != TrialState.COMPLETE, -(trial_score(t) or -2.0), t.number))
    environment = Environment(
        loader=PackageLoader("train_head.sweep", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        result=result,
        settings={name: value for name, value in settings.items() if value is not None},
        over_targets=OVER_TARGETS,
        best=[_best_row(one) for one in result.retrained],
        best_toml=best_toml,
        history=history(trials, result.score_name),
        coordinates=parallel_coordinates(trials, result.score_name),
        importance=bars(importances(trials)),
        fewest=FEWEST,
        trials=[_trial_row(trial) for trial in ranked[:ROWS]],
        more=max(0, len(trials) - ROWS),
    )
    write_atomically(result.folder / REPORT, page.encode())


def importances(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return how much each setting matters, most important first; empty where that cannot be computed."""
    values = [(trial, value) for trial in trials if (value := trial_score(trial)) is not None]
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


def history(trials: Sequence[FrozenTrial], score_name: str) -> Markup:
    """Draw the value of each trial, and the best so far, as SVG."""
    with drawing():
        figure = Figure(figsize=(9, 3), layout="constrained")
        axes = figure.subplots()
        for state, colour, marker in (("complete", COLOURS[0], "o"), ("pruned", GREY, "x")):
            of = [(t.number, value) for t in trials if state_name(t) == state and (value := trial_score(t)) is not None]
            numbers, values = [number for number, _ in of], [value for _, value in of]
            axes.scatter(numbers, values, s=14, color=colour, marker=marker, label=state)
            if state == "complete":
                axes.step(numbers, list(accumulate(values, max)), where="post", color=COLOURS[1], label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"validation {score_name}")
        axes.legend(loc="lower right", frameon=True)
        return Markup(svg(figure))


def parallel_coordinates(trials: Sequence[FrozenTrial], score_name: str) -> Markup:
    """Draw one axis per setting and one line per trial that has a value, as SVG; empty without such trials."""
    shown = [(trial, value) for trial in trials if (value := trial_score(trial)) is not None]
    shown.sort(key=lambda pair: pair[1])
    names = list(dict.fromkeys(name for trial, _ in shown for name in trial.params))
    if not shown or not names:
        return Markup()
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
        axes.set_xticks(range(len(ticks)), [*names, score_name], rotation=25, ha="right")
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.1, len(names) + 0.45)
        return Markup(svg(figure))


def bars(importance: Mapping[str, float]) -> Markup:
    """Draw one bar per setting as SVG; empty without importances."""
    if not importance:
        return Markup()
    with drawing():
        figure = Figure(figsize=(7, 0.5 + 0.28 * len(importance)), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(importance)[::-1], list(importance.values())[::-1], color=COLOURS[0], height=0.6)
        axes.set_xlabel("share of the importance")
        axes.grid(axis="y", visible=False)
        return Markup(svg(figure))


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


def _best_row(one: Retrained) -> tuple[object, ...]:
    valid = one.result.valid
    interval = f"{cell(valid.intervals.mean_low)} to {cell(valid.intervals.mean_high)}"
    figures = (one.trial_score, valid.mean, valid.std, valid.report.mean(valid.metric))
    return (one.number, *map(cell, figures), interval, short(one.values))


def _trial_row(trial: FrozenTrial) -> tuple[object, ...]:
    outcome = trial.user_attrs.get(OUTCOME, {})
    return (
        trial.number,
        state_name(trial),
        cell(trial_score(trial)),
        outcome.get("epochs", ""),
        outcome.get("seconds", ""),
        outcome.get("reason") or short(trial.params),
    )
