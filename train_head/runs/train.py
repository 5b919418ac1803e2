"""From caches and label files to what runs are made from, and from that to a finished run folder."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.paths import StrPath
from train_head.data.groups import check_disjoint
from train_head.data.label_format import LabelFormat
from train_head.data.labels import (
    FILENAME,
    Labels,
    NoGroupsError,
    label_table,
    read_clips,
    read_labels,
    read_split,
    write_predictions,
)
from train_head.data.raters import Agreement, agreement
from train_head.data.splits import Split, gather, gather_shared, open_caches, resolve_splits
from train_head.errors import LabelError, RunFolderError
from train_head.evaluation.metrics import Report, evaluate, label_means
from train_head.reports.card import write_card
from train_head.runs import run_folder
from train_head.runs.material import CachedFeatures, Material, Training
from train_head.training.settings import TrainSettings
from train_head.training.trainer import OnEpoch, Record


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        report: validation metrics of the best epoch.
        test_report: test metrics, where a test file with targets was given.
        best_epoch: its number, from 1.
        history: one record per epoch, as in metrics.jsonl.
        skipped: clips of the label files that no cache holds (with `skip_missing`).
        overlap: what to know where clips are both trained and validated on, or nothing.
        agreement: of the validation clips' raters, where these were asked for.
        resumed_at: epochs that were done before this call; equal to len(history) where there was nothing to do.
    """

    folder: Path
    report: Report
    test_report: Report | None
    best_epoch: int
    history: list[Record]
    skipped: int
    overlap: str
    agreement: Agreement | None = None
    resumed_at: int


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What runs are made from: opened, checked and at hand, for as many runs as one likes.

    Attributes:
        material: where the rows of the splits come from.
        files: label CSVs by split: "train", "valid", perhaps "test".
        labels: what is in them.
        splits: the same with their rows: features, or samples.
        form: how the label files were read.
        protocol: what a run of several is within them; the table `[protocol]` of its config.toml.
    """

    material: Material
    files: Mapping[str, StrPath]
    labels: Mapping[str, Labels]
    splits: Mapping[str, Split]
    form: LabelFormat = field(default_factory=LabelFormat)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overlap(self) -> str:
        """What to know where clips are both trained and validated on; empty where none are."""
        return overlap(self.labels)

    @property
    def skipped(self) -> int:
        """Clips of the label files that were left out because there is nothing of them."""
        return sum(len(self.labels[name]) - len(split) for name, split in self.splits.items())


def gather_inputs(
    caches: StrPath | Sequence[StrPath],
    files: Mapping[str, StrPath],
    form: LabelFormat | None = None,
    *,
    skip_missing: bool = False,
    shared: StrPath | None = None,
) -> Inputs:
    """Read the labels, open the caches, load the features.

    Args:
        caches: one cache, or several with equal fingerprints that together hold the clips.
        files: label CSVs by split.
        form: how the label files are to be read; see `read_split_labels`.
        skip_missing: leave out clips that no cache holds instead of refusing.
        shared: folder of a memory map that all processes with the same inputs have in common, instead of memory of
            one's own; of one cache.

    Raises:
        LabelError, CacheError: a file or a clip is missing or wrong.
    """
    paths = [caches] if isinstance(caches, str | os.PathLike) else list(caches)
    form = form or LabelFormat()
    labels = read_split_labels(files, form)
    stores = open_caches(paths)
    labels = resolve_splits(stores, labels)
    if shared is None:
        splits = gather(stores, labels, skip_missing=skip_missing)
    else:
        (store,) = stores
        splits = gather_shared(store, labels, shared, skip_missing=skip_missing)
    material = CachedFeatures(paths, stores)
    return Inputs(material=material, files=dict(files), labels=labels, splits=splits, form=form)


def read_split_labels(files: Mapping[str, StrPath], form: LabelFormat | None = None) -> dict[str, Labels]:
    """Read label CSVs by split, all with the targets of "train".

    Clips of "train" without any label are left out. A "test" file may lack the targets, the groups and the raters.

    Raises:
        LabelError: a file is missing or wrong, or has no labels, or no training clip has one of some target.
    """
    form = form or LabelFormat()
    train = read_labels(files["train"], form)
    if not train.names:
        raise LabelError(f"{train.path} has no target columns beside Filename")
    empty = [name for name, column in zip(train.names, train.values.T, strict=True) if np.isnan(column).all()]
    if empty:
        raise LabelError(
            f"{train.path} has no label in the column {empty[0]!r}; name the columns that are labels with --targets"
        )
    known = replace(form, targets=train.names)
    others = {name: _read(name, path, known, train) for name, path in files.items() if name != "train"}
    return {"train": train.labelled(), **others}


def overlap(labels: Mapping[str, Labels]) -> str:
    """What to know where clips are both in "train" and in "valid"; empty where none are."""
    train, valid = labels["train"], labels.get("valid")
    both = len(set(train.ids) & set(valid.ids)) if valid is not None else 0
    if not both:
        return ""
    return (
        f"{both} of the {len(valid or ())} validation clips are training clips as well: the validation figures say "
        "nothing about new clips"
    )


def rater_agreement(labels: Labels) -> Agreement | None:
    """How well the raters of a split agree; None where no raters were asked for."""
    return None if labels.ratings is None else agreement(labels.ratings, labels.names)


def check_groups(labels: Mapping[str, Labels]) -> None:
    """Refuse training and validation clips of common groups, where groups were asked for.

    Raises:
        LabelError: as `train_head.data.groups.check_disjoint`.
    """
    groups = [labels[name].groups for name in ("train", "valid")]
    if groups[0] is not None and groups[1] is not None:
        check_disjoint(groups[0], groups[1])


def train_run(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    *,
    keep_last: bool = False,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train a head on inputs that are in memory; called again it resumes, or finds nothing to do.

    Args:
        inputs: with the splits "train" and "valid", perhaps "test", which is predicted with the best epoch.
        out: run folder.
        settings: how to train.
        keep_last: keep the last epoch, so that the validation clips choose nothing.
        on_epoch: called with each epoch's record.

    Raises:
        TrainSettingsError: there is no such device.
        RunFolderError: the folder holds something else or is damaged, or another process trains into it.
        DivergedError: the loss is not finite.
    """
    settings = settings.on_this_machine()
    folder = Path(out)
    run_folder.prepare_folder(folder, run_config(settings, inputs))
    with run_folder.locked(folder):
        return _train_locked(inputs, folder, settings, keep_last, on_epoch)


def _train_locked(
    inputs: Inputs, folder: Path, settings: TrainSettings, keep_last: bool, on_epoch: OnEpoch | None
) -> TrainResult:
    splits = inputs.splits
    trainer, resumed_at = fit_run(inputs, folder, settings, None if keep_last else splits["valid"], on_epoch)
    reports = write_run_predictions(trainer, splits, folder)
    result = TrainResult(
        folder=folder,
        report=reports["valid"],
        test_report=reports.get("test"),
        best_epoch=trainer.best_epoch,
        history=trainer.history,
        skipped=inputs.skipped,
        overlap=inputs.overlap,
        agreement=rater_agreement(splits["valid"].labels),
        resumed_at=resumed_at,
    )
    from train_head.reports.figures import draw_run  # half a second, which a command that trains nothing need not wait

    draw_run(folder, trainer.history, {name: part.labels for name, part in splits.items()})
    write_card(settings, inputs, result)
    return result


def finished_run(inputs: Inputs, folder: Path, settings: TrainSettings) -> TrainResult | None:
    """The finished run in a folder, from its files; None where it is not finished, or a process trains it just now.

    Raises:
        RunFolderError: the folder holds another run.
    """
    if not (folder / run_folder.CARD).is_file():  # written last
        return None
    run_folder.prepare_folder(folder, run_config(settings.on_this_machine(), inputs))
    try:
        with run_folder.locked(folder):
            history = run_folder.read_history(folder)
            read = {
                name: read_labels(folder / f"predictions_{name}.csv", check_range=False).values
                for name in ("valid", "test")
                if name in inputs.splits
            }
    except RunFolderError:
        return None
    names = inputs.splits["train"].labels.names
    labels = {name: inputs.splits[name].labels for name in read}
    mean = label_means(inputs.splits["train"].labels.values)
    reports = {n: evaluate(values, labels[n].values, names, mean) for n, values in read.items() if labels[n].names}
    return TrainResult(
        folder=folder,
        report=reports["valid"],
        test_report=reports.get("test"),
        best_epoch=max(record["epoch"] for record in history if record["best"]),
        history=history,
        skipped=inputs.skipped,
        overlap=inputs.overlap,
        resumed_at=len(history),
    )


def fit_run(
    inputs: Inputs, folder: Path, settings: TrainSettings, valid: Split | None, on_epoch: OnEpoch | None = None
) -> tuple[Training, int]:
    """Train to the end in a folder that is new or holds the same run.

    Args:
        inputs: with the split "train".
        folder: run folder.
        settings: resolved for this machine.
        valid: by which the best epoch is chosen; None keeps the last.
        on_epoch: called with each epoch's record.

    Returns:
        The trainer, and how many epochs were done before.
    """
    run_folder.prepare_folder(folder, run_config(settings, inputs))
    inputs.material.prepare(folder)
    trainer = inputs.material.trainer(settings, inputs.splits["train"], valid, folder)
    trainer.restore()
    resumed_at = len(trainer.history)
    trainer.fit(on_epoch)
    return trainer, resumed_at


def _read(name: str, path: StrPath, form: LabelFormat, train: Labels) -> Labels:
    """Read a split beside "train"."""
    header = label_table(path).header
    lacking = [target for target in train.names if target not in header]
    if name == "test" and len(lacking) == len(train.names):
        return _read_unlabelled(path, replace(form, rater=form.rater if form.rater in header else None))
    if lacking:
        others = ", ".join(name for name in header if name != FILENAME)
        raise LabelError(
            f"{path} has no column {lacking[0]!r} among {others or 'none'}; {train.path} has the targets "
            f"{', '.join(train.names)}, and both need the same"
        )
    found = read_split(name, path, form)
    if np.isnan(found.values).all():
        if name == "test":
            return replace(found, names=(), values=found.values[:, :0], ratings=None)
        raise LabelError(f"{path} has no label at all")
    return found


def _read_unlabelled(path: StrPath, form: LabelFormat) -> Labels:
    """The clips of a file without targets."""
    repeated = form.rater is not None
    try:
        found = read_clips(path, form.group_by, repeated=repeated)
    except NoGroupsError:
        found = read_clips(path, repeated=repeated)
    return replace(found, range=form.range)


def run_config(settings: TrainSettings, inputs: Inputs) -> dict[str, Any]:
    """A run's config.toml: settings at the top, then the tables that record what it was made from."""
    labels, tables = inputs.labels, inputs.material.tables()
    data = tables["data"]
    for name, path in inputs.files.items():
        data |= {name: os.path.abspath(path), f"{name}_sha256": run_folder.file_sha256(path)}
    for name, split in inputs.splits.items():
        if len(split) < len(labels[name]):  # with skip_missing: the cache may have more of them the next time
            data[f"{name}_clips_sha256"] = hashlib.sha256("\n".join(split.labels.ids).encode()).hexdigest()
    data |= inputs.form.to_dict() | {"targets": list(labels["train"].names)}
    protocol = {"protocol": dict(inputs.protocol)} if inputs.protocol else {}
    return settings.to_toml() | tables | protocol | {"versions": run_folder.versions()}


def write_run_predictions(trainer: Training, splits: Mapping[str, Split], folder: Path) -> dict[str, Report]:
    """Predict the validation and test splits, those there are, with the weights that the run kept."""
    train, loaded = splits["train"].labels, False
    reports: dict[str, Report] = {}
    for name in ("valid", "test"):
        if name not in splits:
            continue
        path = folder / f"predictions_{name}.csv"
        values = trainer.known(path)
        if values is None:
            if not loaded:
                trainer.load_best()
                loaded = True
            values = trainer.predict(splits[name])
            write_predictions(path, splits[name].labels, train.names, values)
        if splits[name].labels.names:
            reports[name] = evaluate(values, splits[name].labels.values, train.names, label_means(train.values))
    return reports
