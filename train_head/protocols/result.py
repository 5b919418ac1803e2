"""Several runs as one: the files that they make together, their spread, and how far their mean can be trusted."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from cache.system.atomic_file import write_atomically
from train_head.data.labels import Labels
from train_head.data.predictions import prediction_file, write_predictions
from train_head.data.raters import Agreement
from train_head.errors import RunFolderError
from train_head.evaluation.labelled import intervals_of, report_of, several_groups
from train_head.evaluation.metrics import METRICS, Column, Intervals, Report, few_clips, label_means
from train_head.reports.tables import OVER_TARGETS, cell, text_table
from train_head.reports.usage import usage_of
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs, licence_text, rater_agreement
from train_head.runs.result import TrainResult
from train_head.runs.train import run_config
from train_head.training.settings import TrainSettings

SUMMARY = "summary.json"


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
    def metric(self) -> str:
        """The score of the labels: "pearson", or "ccc" for labels per frame."""
        return self.intervals.metric

    @property
    def mean(self) -> float | None:
        """Mean over the runs of their score, which is a mean over the targets; None where none is defined."""
        return spread([member.mean(self.metric) for member in self.members])[0]

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the same; None for fewer than two runs."""
        return spread([member.mean(self.metric) for member in self.members])[1]

    @property
    def per_target(self) -> dict[str, tuple[float | None, float | None]]:
        """Mean and sample standard deviation over the runs of each target's score."""
        values = [member.values(self.metric) for member in self.members]
        return {name: spread([each[k] for each in values]) for k, name in enumerate(self.report.names)}

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
        score = METRICS[self.valid.metric]
        parts = [f"{score} of each run:\n{self._runs(self.valid)}"]
        parts += [f"{folds if self.kind == 'folds' else ensemble}:\n{self.valid.table()}"]
        if self.agreement is not None:
            parts.append(self.agreement.table(self.valid.report))
        if self.test is not None:
            parts += [f"test, {score} of each run:\n{self._runs(self.test)}"]
            parts += [f"test, {ensemble}:\n{self.test.table()}"]
        return "\n\n".join([*parts, *self.notes])

    def _runs(self, scored: Scored) -> str:
        targets = scored.per_target
        rows = [
            [name, cell(report.mean(scored.metric)), *map(cell, report.values(scored.metric)), str(epoch)]
            for name, epoch, report in zip(self.members, self.best_epochs, scored.members, strict=True)
        ]
        for k, (what, overall) in enumerate((("mean", scored.mean), ("std", scored.std))):
            rows.append([f"{what} over {self.kind}", cell(overall), *(cell(v[k]) for v in targets.values()), ""])
        few = [
            (few_clips(r.names, r.counts, r.clips, r.counted), name)
            for name, r in zip(self.members, scored.members, strict=True)
        ]
        notes = [f"{name}: {warning}" for warning, name in few if warning and self.kind == "folds"]
        return "\n".join([text_table(["", OVER_TARGETS, *targets, "epoch"], rows), *notes])


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation (n - 1) of the values that are defined."""
    defined = [value for value in values if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def prepare_protocol(folder: Path, settings: TrainSettings, inputs: Inputs, protocol: Mapping[str, Any]) -> None:
    """Create the folder of several runs, or check that it holds the same ones; its config.toml is like a run's.

    Raises:
        RunFolderError: it holds something else.
    """
    run_folder.prepare_folder(folder, run_config(settings, inputs) | {"protocol": dict(protocol)})


def listed_members(folder: Path) -> tuple[str, ...]:
    """Return the runs that a finished protocol lists in ensemble.toml; empty where it is not finished."""
    path = folder / run_folder.ENSEMBLE
    if not path.is_file():
        return ()
    try:
        return tuple(tomllib.loads(path.read_text(encoding="utf-8"))["members"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove it, and the same command writes it anew") from error


def write_ensemble(
    folder: Path, kind: str, members: Sequence[str], weights: Sequence[float] | None = None, *, centre: bool = False
) -> None:
    """List the runs whose predictions are averaged, by their places seen from the folder, with weights if not alike."""
    content: dict[str, Any] = {"kind": kind, "members": list(members)}
    content |= ({} if weights is None else {"weights": list(weights)}) | ({"centre": True} if centre else {})
    write_atomically(folder / run_folder.ENSEMBLE, tomli_w.dumps(content).encode())


def write_mean(
    folder: Path, split: str, predictions: Sequence[NDArray[np.float32]], labels: Labels, train: Labels
) -> Scored | None:
    """Average the runs' predictions of a split into the folder's file.

    Args:
        folder: that holds the runs.
        split: "valid" or "test".
        predictions: of each run, of all clips or label rows.
        labels: of the split.
        train: what the runs were trained on.

    Returns:
        The scores; None where the split has no targets.
    """
    mean = np.stack(predictions).astype(np.float64).mean(0).astype(np.float32)
    write_predictions(prediction_file(folder, split, labels), labels, train.names, mean)
    if not labels.names:
        return None
    train_mean = label_means(train.values)
    reports = [report_of(values, labels, train_mean) for values in predictions]
    return score(mean, labels, reports, train_mean)


def score(
    predicted: NDArray[np.float32], labels: Labels, members: Sequence[Report], train_mean: Column | None
) -> Scored:
    """Score what runs predict together; the intervals resample groups where the labels have several.

    Args:
        predicted: (clips, targets), or (label rows, targets) for labels per frame.
        labels: of the same clips.
        members: metrics of each run.
        train_mean: mean of the training labels, as for `evaluate`.
    """
    return Scored(
        members=tuple(members),
        report=report_of(predicted, labels, train_mean),
        intervals=intervals_of(predicted, labels, several_groups(labels)),
    )


def finish(
    folder: Path,
    kind: str,
    inputs: Inputs,
    settings: TrainSettings,
    results: Sequence[TrainResult],
    *,
    valid: Scored,
    labels: Labels,
    train: Labels,
    notes: tuple[str, ...],
    before: tuple[str, ...],
) -> ProtocolResult:
    """Write what finished runs predict together for "test", summary.json, README.md, and last ensemble.toml.

    Args:
        folder: that holds the runs.
        kind: "seeds" or "folds".
        inputs: of all runs together.
        settings: of every run, but for its seed.
        results: the runs.
        valid: their scores on the clips that were kept from training.
        labels: of those clips.
        train: labels that the runs were trained on.
        notes: what a reader must know about the figures.
        before: the runs that the folder listed before this call.
    """
    members = tuple(result.folder.name for result in results)
    trained = sum(len(result.history) - result.resumed_at for result in results)
    test = inputs.splits.get("test")
    tested = [result.predictions["test"] for result in results] if test is not None else []
    done = ProtocolResult(
        folder=folder,
        kind=kind,
        members=members,
        best_epochs=tuple(result.best_epoch for result in results),
        valid=valid,
        test=write_mean(folder, "test", tested, test.labels, train) if test is not None else None,
        agreement=rater_agreement(labels),
        notes=notes,
        skipped=inputs.skipped,
        epochs_trained=trained,
        nothing_to_do=trained == 0 and before == members,
    )
    write_atomically(folder / SUMMARY, (json.dumps(done.to_dict(), indent=2) + "\n").encode())
    write_atomically(folder / run_folder.CARD, _readme(done, settings, inputs).encode())
    write_ensemble(folder, kind, members)
    return done


def _readme(result: ProtocolResult, settings: TrainSettings, inputs: Inputs) -> str:
    names = [path.stem for path in sorted(result.folder.glob("traces_*.svg"))]
    pictures = "".join(f"\n![Labels and predictions over time]({name}.svg)\n" for name in names)
    return f"""# {len(result.members)} {result.kind} of one head for {", ".join(inputs.labels["train"].names)}

Head `{settings.head}`, loss `{settings.loss}`; all settings are in `config.toml`, all numbers in `summary.json`.
Each run has its own model card: {", ".join(f"[{name}]({name}/README.md)" for name in result.members)}.

```
{result.table()}
```
{pictures}
The standard deviation is that of a sample. {METRICS[result.valid.metric]} of an average of predictions is no average
of those of the runs.

## Use

{usage_of(inputs, settings)}

The predictions of the runs that `{run_folder.ENSEMBLE}` lists are averaged. Intensities describe how strongly an
emotion is *shown*; they say nothing about what a person feels.

{licence_text(inputs)}
"""
