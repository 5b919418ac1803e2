"""What several runs tell together: the spread over them, and how far their common prediction can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train_head.data.raters import Agreement
from train_head.evaluation.metrics import Intervals, Report, few_clips
from train_head.reports.tables import OVER_TARGETS, cell, text_table


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How the predictions of one split do.

    Attributes:
        members: metrics of each run.
        report: metrics of what the runs predict together.
        intervals: 95 % bootstrap intervals of that.
    """

    members: tuple[Report, ...]
    report: Report
    intervals: Intervals

    @property
    def mean(self) -> float | None:
        """Mean over the runs of their mean Pearson; None where none is defined."""
        return spread([member.mean_pearson for member in self.members])[0]

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the same; None for fewer than two runs."""
        return spread([member.mean_pearson for member in self.members])[1]

    @property
    def per_target(self) -> dict[str, tuple[float | None, float | None]]:
        """Mean and sample standard deviation over the runs of each target's Pearson."""
        names = self.report.names
        return {name: spread([member.pearson[k] for member in self.members]) for k, name in enumerate(names)}

    def table(self) -> str:
        """Plain text: what the runs predict together, with intervals."""
        return self.report.table(self.intervals)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        return {
            "mean": self.mean,
            "std": self.std,
            "per_target": {name: {"mean": mean, "std": std} for name, (mean, std) in self.per_target.items()},
            "together": self.report.to_dict(),
            "intervals": self.intervals.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Several finished runs.

    Attributes:
        folder: the folder that holds them.
        kind: "seeds" or "folds".
        members: names of the runs' folders.
        best_epochs: the epoch that each run kept.
        valid: scores on the validation clips; of folds, all clips, each predicted by the run that did not train on it.
        test: scores of the runs' mean on the test split, where one with targets was given.
        agreement: of the raters of the clips of `valid`, where these were asked for.
        notes: what a reader must know about these figures.
        skipped: clips of the label files that no cache holds.
        epochs_trained: in this call.
        nothing_to_do: whether all was finished before.
    """

    folder: Path
    kind: str
    members: tuple[str, ...]
    best_epochs: tuple[int, ...]
    valid: Scored
    test: Scored | None
    agreement: Agreement | None = None
    notes: tuple[str, ...]
    skipped: int
    epochs_trained: int
    nothing_to_do: bool

    @property
    def report(self) -> Report:
        """Metrics of what the runs predict together."""
        return self.valid.report

    @property
    def test_report(self) -> Report | None:
        """The same on the test split."""
        return None if self.test is None else self.test.report

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: the same for equal runs, whenever and in however many goes they were made."""
        members = [
            {"name": name, "best_epoch": epoch, "valid": report.to_dict()}
            | ({"test": self.test.members[i].to_dict()} if self.test else {})
            for i, (name, epoch, report) in enumerate(
                zip(self.members, self.best_epochs, self.valid.members, strict=True)
            )
        ]
        splits = {"valid": self.valid.to_dict()} | ({"test": self.test.to_dict()} if self.test else {})
        raters = {"raters": self.agreement.to_dict()} if self.agreement else {}
        return {"kind": self.kind, "notes": list(self.notes), "members": members, **splits, **raters}

    def table(self) -> str:
        """Plain text: each run, mean and standard deviation over them, and what they predict together."""
        ensemble = f"ensemble of the {len(self.members)} runs (their predictions averaged)"
        folds = "all clips, each predicted by the run that did not train on it"
        parts = [f"Pearson of each run:\n{self._runs(self.valid)}"]
        parts += [f"{folds if self.kind == 'folds' else ensemble}:\n{self.valid.table()}"]
        if self.agreement is not None:
            parts.append(self.agreement.table(self.valid.report))
        if self.test is not None:
            parts += [f"test, Pearson of each run:\n{self._runs(self.test)}"]
            parts += [f"test, {ensemble}:\n{self.test.table()}"]
        return "\n\n".join([*parts, *self.notes])

    def _runs(self, scored: Scored) -> str:
        targets = scored.per_target
        rows = [
            [name, cell(report.mean_pearson), *map(cell, report.pearson), str(epoch)]
            for name, epoch, report in zip(self.members, self.best_epochs, scored.members, strict=True)
        ]
        for k, (what, overall) in enumerate((("mean", scored.mean), ("std", scored.std))):
            rows.append([f"{what} over {self.kind}", cell(overall), *(cell(v[k]) for v in targets.values()), ""])
        few = [
            (few_clips(r.names, r.counts, r.clips), name) for name, r in zip(self.members, scored.members, strict=True)
        ]
        notes = [f"{name}: {warning}" for warning, name in few if warning and self.kind == "folds"]
        return "\n".join([text_table(["", OVER_TARGETS, *targets, "epoch"], rows), *notes])


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean, and sample standard deviation (n - 1), of the values that are defined."""
    defined = [value for value in values if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else None
