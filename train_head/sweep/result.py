"""What a sweep found, and its trials as a table."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from cache.system.atomic_file import write_atomically
from train_head.evaluation.metrics import METRICS
from train_head.protocols import ProtocolResult
from train_head.reports.tables import OVER_TARGETS, cell, csv_text, text_table
from train_head.sweep.storage import OUTCOME, counted
from train_head.sweep.trials import Status

TRIALS_CSV = "trials.csv"
FEWEST_RANKED = 5
"""Trials below which no rank correlation is significant: two of the n! orders are perfect, one of them reversed, which
is less than 5 % from five on."""


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """One of the best trials, trained again on all clips and the full features.

    Attributes:
        number: of the trial.
        values: what was drawn for it.
        trial_score: its validation score as a trial.
        result: of its seeds.
    """

    number: int
    values: dict[str, Any]
    trial_score: float
    result: ProtocolResult

    @property
    def score(self) -> float:
        """Mean validation score over the seeds; -1, the lowest there is, where it is undefined."""
        mean = self.result.valid.mean
        return -1.0 if mean is None else mean


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        folder: run folder.
        score_name: of what is maximised: `Pearson`, or `CCC` for labels per frame.
        status: counts, and the best trial.
        best: what was drawn for the best trial.
        best_streams: what the best head reads where the trials chose among streams; else empty.
        retrained: the best trials trained again, the best of those first; empty where that was left out.
        nothing_to_do: whether all was finished before.
    """

    folder: Path
    score_name: str
    status: Status
    best: dict[str, Any]
    best_streams: tuple[str, ...] = ()
    retrained: tuple[Retrained, ...]
    nothing_to_do: bool

    @property
    def agreement(self) -> float | None:
        """Spearman's rank correlation between the trials and their retraining.

        None for fewer than five, or where all values of one are equal.
        """
        if len(self.retrained) < FEWEST_RANKED:
            return None
        value = float(spearmanr([r.trial_score for r in self.retrained], [r.score for r in self.retrained]).statistic)
        return None if math.isnan(value) else value

    def table(self) -> str:
        """Return plain text: the counts, the best few, and how well the order of the trials agrees with theirs."""
        status = self.status
        lines = [
            f"{status.finished} trials: {status.complete} complete, {status.pruned} pruned, {status.failed} failed; "
            f"best validation {self.score_name} {cell(status.best)} (trial {status.best_number})"
        ]
        if not self.retrained:
            return "\n".join(lines)
        seeds = len(self.retrained[0].result.members)
        times = "1 seed" if seeds == 1 else f"{seeds} seeds"
        rows, width = [], max(len(short(one.values)) for one in self.retrained)
        for one in self.retrained:
            valid = one.result.valid
            mean = cell(valid.mean) + ("" if valid.std is None else f" ± {cell(valid.std)}")
            interval = f"{cell(valid.intervals.mean_low)} {cell(valid.intervals.mean_high)}"
            figures = (cell(one.trial_score), mean, cell(valid.report.mean(valid.metric)), interval)
            rows.append([str(one.number), *figures, short(one.values).ljust(width)])
        header = ["trial", "as trial", "mean ± std over seeds", "ensemble", "95 % interval", "settings".ljust(width)]
        scored, notes = self.retrained[0].result.valid, self.retrained[0].result.notes[1:]
        return "\n".join(
            [
                *lines,
                "",
                f"the best {len(self.retrained)} again, on all clips and full features, {times} each "
                f"({METRICS[scored.metric]}, {OVER_TARGETS}):",
                text_table(header, rows),
                "",
                self.agreement_line(),
                *notes,
                *scored.report.notes,
                *scored.intervals.warnings,
            ]
        )

    def agreement_line(self) -> str:
        """Return how well the trials' order agrees with that of the retrained, in words."""
        if self.agreement is None:
            return (
                f"Fewer than {FEWEST_RANKED} trials of different value were retrained: too few to say how well the "
                "trials' order agrees with the full one."
            )
        return (
            f"Rank correlation (Spearman) of the {len(self.retrained)} as trials and retrained: {self.agreement:.2f}. "
            "Trials and epochs were chosen on the validation clips, so these figures are optimistic for new ones."
        )


def write_trials(study: Study, folder: Path) -> None:
    """Write trials.csv: one row per trial, with a column for everything that was drawn in any."""
    trials = study.get_trials(deepcopy=False)
    held = {trial.number for trial in counted(study)}
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    fields = ["number", "state", "value", "best_epoch", "epochs", "seconds", *names, "reason"]
    rows: list[list[Any]] = [fields]
    for trial in trials:
        outcome = trial.user_attrs.get(OUTCOME, {})
        row = {"number": trial.number, "state": state_name(trial), "value": trial_score(trial)} | outcome | trial.params
        if trial.number not in held:
            row |= {"state": "lost", "reason": outcome.get("reason") or "its worker died; the trial was run again"}
        rows.append([row.get(name) for name in fields])
    write_atomically(folder / TRIALS_CSV, csv_text(rows).encode())


def ended(trial: FrozenTrial) -> str:
    """Return how a trial ended, in one line."""
    outcome = trial.user_attrs.get(OUTCOME, {})
    if trial.state == TrialState.FAIL:
        return f"trial {trial.number}: failed: {outcome.get('reason', 'its worker died')}"
    pruned = f", pruned after {outcome.get('epochs')} epochs" if trial.state == TrialState.PRUNED else ""
    return f"trial {trial.number}: {cell(trial_score(trial))}{pruned}  {short(trial.params)}"


def state_name(trial: FrozenTrial) -> str:
    """complete, pruned, failed, running or waiting."""
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def trial_score(trial: FrozenTrial) -> float | None:
    """Highest validation score of a trial's epochs; None before the first defined one."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    best = trial.user_attrs.get(OUTCOME, {}).get("best")
    return float(best) if best is not None else None


def short(values: dict[str, Any]) -> str:
    """Settings in one line: `head=lstm lr=0.00123`."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
