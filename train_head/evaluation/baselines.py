"""Find the mean of the training labels, a baseline for a prediction file: from a label CSV or the run around it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cache.ids import clip_id, match_ids
from cache.paths import StrPath
from train_head.data.label_format import LabelFormat, recorded_format
from train_head.data.labels import Labels, label_table
from train_head.data.predictions import stored_file
from train_head.data.reading import read_any_labels
from train_head.errors import LabelError, RunFolderError
from train_head.evaluation.metrics import Column, label_means
from train_head.runs import run_folder

FOLDS, LABELS_FOLDS = "folds.csv", "labels_folds"
"""Of cross-validation: the file with the fold of each clip, and the CSV or folder with the labels of all clips."""


def training_mean(
    predictions: StrPath,
    scored: Labels,
    train: StrPath | None = None,
    form: LabelFormat | None = None,
) -> tuple[Column | None, str]:
    """Return the mean of the training labels, for `train_head.evaluation.metrics.evaluate`.

    Args:
        predictions: a prediction file or folder; a run folder around it says which labels it was trained on.
        scored: the labels of the clips that are scored.
        train: CSV of training labels, which overrides those that the run records.
        form: how `train` is to be read.

    Returns:
        (targets,), or for folds (clips, targets) or (label rows, targets) with the mean of the other folds; None if
        unknown. And the reason if a run records labels that cannot be used.

    Raises:
        LabelError: `train` is wrong, or lacks a target.
    """
    if train is not None:
        return label_means(_read(train, form or LabelFormat(), scored.names)), ""
    folder = Path(predictions).parent
    try:
        config = run_folder.read_config_file(folder)
    except RunFolderError:  # not a run
        return None, ""
    if not isinstance(config.get("data"), dict) or "targets" not in config["data"]:
        return None, ""
    try:
        return _mean_of_run(folder, config, scored), ""
    except (ValueError, OSError) as error:  # of labels or of folds.csv
        return None, f"the mean of the training labels is not known: {error}; give them with --train CSV"


def fold_means(values: ArrayLike, fold: ArrayLike) -> Column:
    """Return the (clips, targets) mean of the labels in the other folds.

    Args:
        values: (clips, targets), or the rows of labels per frame.
        fold: (clips,) number of each clip's fold, or of each row's.
    """
    labels, number = np.asarray(values, np.float64), np.asarray(fold)
    means: Column = np.empty(labels.shape)
    for each in np.unique(number):
        means[number == each] = label_means(labels[number != each])
    return means


def _mean_of_run(folder: Path, config: Mapping[str, Any], scored: Labels) -> Column:
    kind, data = config.get("protocol", {}).get("kind"), config["data"]
    if kind in ("fold", "folds"):
        return _mean_of_folds(folder if kind == "folds" else folder.parent, config, scored)
    splits = ("train", "valid") if kind == "all" else ("train",)
    return label_means(np.concatenate([_recorded(data, split, config, scored.names) for split in splits]))


def _mean_of_folds(folder: Path, config: Mapping[str, Any], scored: Labels) -> Column:
    path, form = stored_file(folder, LABELS_FOLDS), replace(recorded_format(config), targets=scored.names)
    if form.rater is not None and form.rater not in label_table(path).header:
        form = replace(form, rater=None)
    labels = read_any_labels(path, form)
    fold = {clip_id(name): int(number) for name, number in label_table(folder / FOLDS).rows}  # Filename, fold
    missing = sum(clip_id(name) not in fold for name in labels.filenames)
    if missing:
        raise LabelError(f"{folder / FOLDS} lacks {missing} clips")
    numbers = np.array([fold[clip_id(name)] for name in labels.filenames])
    values, of_row = labels.values.astype(np.float64), np.repeat(numbers, labels.lengths)
    means = {number: label_means(values[of_row != number]) for number in set(numbers.tolist())}
    by_clip = {name: means[number] for name, number in zip(labels.filenames, numbers.tolist(), strict=True)}
    number = config["protocol"].get("number")  # only in the run of one fold
    others = label_means(values if number is None else values[of_row != number])  # for clips in no fold
    found = [others if name is None else by_clip[name] for name in match_ids(scored.filenames, by_clip)]
    return np.repeat(np.stack(found), scored.lengths, axis=0)


def _recorded(data: Mapping[str, Any], split: str, config: Mapping[str, Any], names: Sequence[str]) -> Column:
    """Return the labels of a run's split, if the file is unchanged and the run used all of its clips."""
    if split not in data:
        raise LabelError("the run does not record them")
    path = Path(data[split])
    if not path.exists() or run_folder.file_sha256(path) != data.get(f"{split}_sha256"):
        raise LabelError(f"{path} is gone or has changed since the run was made")
    if f"{split}_clips_sha256" in data:
        raise LabelError(f"the run left out clips of {path}")
    return _read(path, recorded_format(config), names)


def _read(path: StrPath, form: LabelFormat, names: Sequence[str]) -> Column:
    """Return the (clips, targets) labels of the named targets."""
    form = replace(form, targets=tuple(names), group_by=None)  # groups do not matter here
    values: Column = read_any_labels(path, form).values.astype(np.float64)
    return values
