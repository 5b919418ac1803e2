"""Two runs on the same clips: which is better, and could that be chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.container import StrPath
from train_head.errors import LabelError
from train_head.intervals import Difference, paired_bootstrap
from train_head.labels import Labels, read_labels
from train_head.run_folder import file_sha256, read_config_file
from train_head.scoring import align


@dataclass(frozen=True)
class Comparison:
    """Two predictions of the same clips.

    Attributes:
        a, b: the prediction files.
        labels: the label file.
        labelled: how many clips it has; more than were compared where the runs left some out.
        notes: what a reader should know: that a run was made with other labels.
        difference: the numbers.
    """

    a: str
    b: str
    labels: str
    labelled: int
    notes: tuple[str, ...]
    difference: Difference

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        files = {"a": self.a, "b": self.b, "labels": self.labels, "labelled": self.labelled, "notes": list(self.notes)}
        return files | {"difference": self.difference.to_dict()}

    def table(self) -> str:
        """Plain text: the files, one line per target, the mean, and what was drawn."""
        clips = self.difference.clips
        share = "" if clips == self.labelled else f" ({clips} of its {self.labelled} clips were predicted)"
        files = f"A: {self.a}\nB: {self.b}\nlabels: {self.labels}{share}\nPearson:"
        return "\n".join([files, self.difference.table(), *self.notes])


@dataclass(frozen=True)
class _Side:
    """Predictions, and what a run folder records of the labels that belong to them."""

    place: Path
    predictions: Labels
    labels: Path | None = None
    sha256: str | None = None
    scale: float | None = None
    group_by: str | None = None


def compare(
    a: StrPath,
    b: StrPath,
    *,
    split: str = "valid",
    labels: StrPath | None = None,
    label_scale: float | None = None,
    group_by: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs, or the prediction CSVs of any tools, clip by clip.

    Args:
        a: run folder or prediction CSV.
        b: run folder or prediction CSV.
        split: which predictions of a run folder: "valid" or "test".
        labels: label CSV; by default the one that the runs record, if it is unchanged.
        label_scale: the labels are divided by it; by default what the runs record, or 1.
        group_by: column of the labels, or regular expression on Filename; whole groups are resampled. By default what
            the runs record.
        resamples: how many.
        seed: of the draws.

    Raises:
        LabelError: predictions are missing; the clips or targets of the two differ; or the labels are unknown, gone,
            changed, or not the same for both.
        RunFolderError: a folder is no run.
    """
    one, other = _side(a, split), _side(b, split)
    _same_clips(one.predictions, other.predictions)
    place = Path(labels) if labels is not None else _recorded_labels(one, other, split)
    scale = next((s for s in (label_scale, one.scale, other.scale) if s is not None), 1.0)
    grouping = next((g for g in (group_by, one.group_by, other.group_by) if g is not None), None)
    truth = read_labels(place, scale, group_by=grouping)
    if not truth.names:
        raise LabelError(f"{place} has no target columns beside Filename, so there is nothing to compare on")
    predicted = set(one.predictions.ids)
    unknown = [clip for clip in one.predictions.ids if clip not in set(truth.ids)]
    if unknown:
        raise LabelError(f"{len(unknown)} predicted clips are not in {place} (first: {', '.join(unknown[:5])})")
    common = truth.take([i for i, clip in enumerate(truth.ids) if clip in predicted])
    difference = paired_bootstrap(
        align(one.predictions, common),
        align(other.predictions, common),
        common.values,
        common.names,
        groups=common.groups,
        resamples=resamples,
        seed=seed,
    )
    return Comparison(
        a=one.predictions.path,
        b=other.predictions.path,
        labels=str(place),
        labelled=len(truth),
        notes=_notes((one, other), place),
        difference=difference,
    )


def _side(place: StrPath, split: str) -> _Side:
    path = Path(place)
    if not path.is_dir():
        return _Side(path, read_labels(path, check_range=False))
    config = read_config_file(path)
    predictions = path / f"predictions_{split}.csv"
    if not predictions.is_file():
        kind = config.get("protocol", {}).get("kind")
        hint = "train it with --test CSV" if split == "test" else "the same `emi train-head` finishes it"
        if split == "valid" and kind == "folds":
            hint = "of folds, compare the files predictions_folds.csv, with --labels labels_folds.csv"
        elif split == "valid" and "valid" not in config.get("data", {}):
            hint = "it was trained on all clips, without any to validate on"
        raise LabelError(f"{path} has no {predictions.name}; {hint}")
    data = config.get("data", {})
    return _Side(
        path,
        read_labels(predictions, check_range=False),
        Path(data[split]) if split in data else None,
        data.get(f"{split}_sha256"),
        config.get("label_scale"),
        data.get("group_by"),
    )


def _recorded_labels(one: _Side, other: _Side, split: str) -> Path:
    """The label file of two runs: the same bytes as when they were made."""
    recorded = [(side.labels, side.sha256) for side in (one, other) if side.labels is not None]
    if not recorded:
        raise LabelError(f"neither {one.place} nor {other.place} records its labels; give them with --labels CSV")
    if len({sha256 for _, sha256 in recorded}) > 1:
        raise LabelError(
            f"{one.place} and {other.place} were made with different {split} labels ({one.labels} and {other.labels}); "
            "give those to compare on with --labels CSV"
        )
    for path, sha256 in recorded:
        if path.is_file() and file_sha256(path) == sha256:
            return path
    changed = [path for path, _ in recorded if path.is_file()]
    if changed:
        raise LabelError(
            f"{changed[0]} has changed since {one.place} was made; to compare on it all the same, give it with --labels"
        )
    raise LabelError(f"the labels of {one.place} are no longer at {recorded[0][0]}; give them with --labels CSV")


def _same_clips(one: Labels, other: Labels) -> None:
    for this, that in ((one, other), (other, one)):
        known = set(that.ids)
        missing = [clip for clip in this.ids if clip not in known]
        if missing:
            raise LabelError(
                f"{that.path} lacks {len(missing)} of the {len(this)} clips of {this.path} (first: "
                f"{', '.join(missing[:5])}); only predictions of the same clips can be compared"
            )


def _notes(sides: Sequence[_Side], labels: Path) -> tuple[str, ...]:
    sha256 = file_sha256(labels)
    others = [side for side in sides if side.sha256 not in (None, sha256)]
    return tuple(
        f"{labels} is not what {side.place} was made with: {side.labels} had other contents" for side in others
    )
