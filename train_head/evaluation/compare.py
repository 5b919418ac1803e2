"""Compare two runs on the same clips: which is better, and could the difference be chance?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.paths import StrPath
from train_head.data.label_format import UNIT, LabelFormat, label_format, recorded_format
from train_head.data.labels import Labels
from train_head.data.matching import align, check_same_clips, cut_notes, match_clips, predicted_rows
from train_head.data.predictions import stored_file
from train_head.data.reading import read_any_labels, read_beside
from train_head.errors import LabelError, TrainSettingsError, unknown
from train_head.evaluation.baselines import training_mean
from train_head.evaluation.intervals import Difference
from train_head.evaluation.labelled import difference_of
from train_head.evaluation.metrics import METRICS, evaluate, mean_of
from train_head.reports.tables import OVER_TARGETS, cell
from train_head.runs.run_folder import CONFIG, file_sha256, read_config_file


@dataclass(frozen=True)
class Comparison:
    """Two predictions of the same clips.

    Attributes:
        a, b: the prediction files.
        labels: the label file.
        labelled: number of its clips; more than were compared if the runs left some out.
        compared: number of clips that were compared.
        notes: warnings that a run was made with other labels, or lacks rows of labels per frame.
        difference: the numbers.
        baselines: with "mae", the mean absolute errors of constant predictions; empty for other metrics.
    """

    a: str
    b: str
    labels: str
    labelled: int
    compared: int
    notes: tuple[str, ...]
    difference: Difference
    baselines: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
        return {
            "a": self.a,
            "b": self.b,
            "labels": self.labels,
            "labelled": self.labelled,
            "compared": self.compared,
            "notes": list(self.notes),
            "difference": self.difference.to_dict(),
            "baselines": dict(self.baselines),
        }

    def table(self) -> str:
        """Return plain text: the files, one line per target, the mean, and how many resamples were drawn."""
        missing = self.compared != self.labelled
        share = f" ({self.compared} of its {self.labelled} clips were predicted)" if missing else ""
        files = f"A: {self.a}\nB: {self.b}\nlabels: {self.labels}{share}\n{METRICS[self.difference.metric]}:"
        constant = [f"{name}: MAE {cell(mae)} ({OVER_TARGETS})" for name, mae in self.baselines.items()]
        return "\n".join([files, self.difference.table(), *constant, *self.notes])


@dataclass(frozen=True)
class _Side:
    """Predictions, and the labels that their run folder records."""

    place: Path
    predictions: Labels
    labels: Path | None = None
    sha256: str | None = None
    form: LabelFormat | None = None


def compare(
    a: StrPath,
    b: StrPath,
    *,
    split: str = "valid",
    labels: StrPath | None = None,
    label_scale: float | None = None,
    label_range: str | Sequence[float] | None = None,
    targets: str | Sequence[str] | None = None,
    rater: str | None = None,
    group_by: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    metric: str = "",
) -> Comparison:
    """Compare two runs, or the predictions of any tools, clip by clip.

    Args:
        a: run folder, or predictions: a CSV or a folder, as for `emi evaluate`.
        b: another one.
        split: which predictions of a run folder: "valid" or "test".
        labels: label CSV; by default the one that the runs record, if it is unchanged.
        label_scale, label_range, targets, rater: as in `LabelFormat`; by default what the runs record.
        group_by: column of the labels, or regular expression on Filename; whole groups are resampled. By default what
            the runs record.
        resamples: number of resamples.
        seed: of the draws.
        metric: "pearson", "ccc" or "mae"; lower is better for "mae". By default Pearson, and CCC for labels per frame.

    Raises:
        TrainSettingsError: the metric is unknown.
        LabelError: predictions are missing; the clips or targets of the two differ; or the labels are unknown, gone,
            changed, or not the same for both.
        RunFolderError: a folder is not a run.
    """
    if metric and metric not in METRICS:
        raise TrainSettingsError(unknown("metric", metric, METRICS))
    one, other = _side(a, split, targets), _side(b, split, targets)
    check_same_clips(one.predictions, other.predictions, "compared")
    place = Path(labels) if labels is not None else _recorded_labels(one, other, split)
    given = {"label_scale": label_scale, "label_range": label_range, "targets": targets, "rater": rater}
    form = _format(one, other, {**given, "group_by": group_by})
    truth = read_beside(split if labels is None else "valid", place, form, one.predictions)
    common = _predicted(truth, one.predictions, other.predictions)
    metric = metric or common.targets.score
    guess, opponent = align(one.predictions, common), align(other.predictions, common)
    return Comparison(
        a=one.predictions.path,
        b=other.predictions.path,
        labels=str(place),
        labelled=len(truth),
        compared=len(common),
        notes=_notes((one, other), place) + cut_notes(common),
        difference=difference_of(guess, opponent, common, common.groups, resamples=resamples, seed=seed, metric=metric),
        baselines=_baselines((one, other), guess, common) if metric == "mae" else {},
    )


def _predicted(truth: Labels, predictions: Labels, others: Labels) -> Labels:
    """Return the labels of the clips, and of the rows, that were predicted."""
    if not truth.names:
        raise LabelError(f"{truth.path} has no target columns beside Filename, so there is nothing to compare on")
    found = match_clips(predictions, truth)
    unlabelled = [clip for clip, there in zip(predictions.ids, found, strict=True) if there is None]
    if unlabelled:
        raise LabelError(
            f"{len(unlabelled)} predicted clips are not in {truth.path} (first: {', '.join(unlabelled[:5])})"
        )
    one = predicted_rows(truth.take(sorted(there for there in found if there is not None)), predictions)
    both = predicted_rows(one, others)
    return replace(both, cut=tuple(dict.fromkeys(one.cut + both.cut)))


def _baselines(sides: Sequence[_Side], guess: NDArray[np.float32], labels: Labels) -> dict[str, float | None]:
    """Return mean absolute errors of constant predictions, with the training mean of the first run that knows it."""
    means = (training_mean(side.predictions.path, labels)[0] for side in sides)
    known = next((mean for mean in means if mean is not None), None)
    return {name: mean_of(mae) for name, mae in evaluate(guess, labels.values, labels.names, known).baselines.items()}


def _side(place: StrPath, split: str, targets: str | Sequence[str] | None) -> _Side:
    path, form = Path(place), label_format(targets=targets)
    if not path.is_dir() or (not (path / CONFIG).exists() and any(path.rglob("*.txt"))):
        return _Side(path, read_any_labels(path, form, check_range=False))
    config = read_config_file(path)
    predictions = stored_file(path, f"predictions_{split}")
    if not predictions.exists():
        raise LabelError(f"{path} has no {predictions.name}; {_how_to_get(split, path, config)}")
    data = config.get("data", {})
    return _Side(
        path,
        read_any_labels(predictions, form, check_range=False),
        Path(data[split]) if split in data else None,
        data.get(f"{split}_sha256"),
        recorded_format(config),
    )


def _how_to_get(split: str, folder: Path, config: Mapping[str, Any]) -> str:
    """Return what to do where a run lacks the predictions of a split."""
    if split == "test":
        return "train it with --test CSV"
    if config.get("protocol", {}).get("kind") == "folds":
        names = (stored_file(folder, name).name for name in ("predictions_folds", "labels_folds"))
        return "for folds, compare {}, with --labels {}".format(*names)
    if "valid" not in config.get("data", {}):
        return "it was trained on all clips, without validation"
    return "the same `emi train-head` command finishes it"


def _format(one: _Side, other: _Side, given: Mapping[str, Any]) -> LabelFormat:
    """Return how the labels are read: as requested, else as the first run that records it read them."""
    recorded = [side.form for side in (one, other) if side.form is not None]
    if len({form.range for form in recorded}) > 1:
        ranges = " and ".join(f"{form.range[0]:g} to {form.range[1]:g}" for form in recorded)
        raise LabelError(
            f"{one.place} and {other.place} predict on different scales, {ranges}; compare runs of one --label-range"
        )
    known: dict[str, Any] = {
        "targets": next((form.targets for form in recorded if form.targets), None),
        "rater": next((form.rater for form in recorded if form.rater), None),
        "group_by": next((form.group_by for form in recorded if form.group_by), None),
    }
    if given["label_scale"] is None and given["label_range"] is None:
        known["label_scale"] = next((form.scale for form in recorded if form.scale != 1.0), None)
        known["label_range"] = next((form.range for form in recorded if form.range != UNIT), None)
    return label_format(**(known | {key: value for key, value in given.items() if value is not None}))


def _recorded_labels(one: _Side, other: _Side, split: str) -> Path:
    """Return the label file of two runs, with the bytes that they were made with."""
    recorded = [(side.labels, side.sha256) for side in (one, other) if side.labels is not None]
    if not recorded:
        raise LabelError(f"neither {one.place} nor {other.place} records its labels; give them with --labels CSV")
    if len({sha256 for _, sha256 in recorded}) > 1:
        raise LabelError(
            f"{one.place} and {other.place} were made with different {split} labels ({one.labels} and {other.labels}); "
            "give the labels to compare on with --labels CSV"
        )
    for path, sha256 in recorded:
        if path.exists() and file_sha256(path) == sha256:
            return path
    for path, _ in recorded:
        if path.exists():
            raise LabelError(
                f"{path} has changed since {one.place} was made; to compare on it anyway, give it with --labels"
            )
    raise LabelError(f"the labels of {one.place} are no longer at {recorded[0][0]}; give them with --labels CSV")


def _notes(sides: Sequence[_Side], labels: Path) -> tuple[str, ...]:
    sha256 = file_sha256(labels)
    return tuple(
        f"{side.place} was made with other labels: the contents of {side.labels}, not those of {labels}"
        for side in sides
        if side.sha256 not in (None, sha256)
    )
