"""What runs are made from: label files, and the splits that they give on cached features (or on decoded media)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
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
)
from train_head.data.raters import Agreement, agreement
from train_head.data.splits import Split, gather, open_caches, resolve_splits
from train_head.errors import LabelError
from train_head.runs.source import CachedFeatures, DataSource


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """The label files of a training, and how they are read.

    Attributes:
        files: label CSVs by split: "train", perhaps "valid" and "test".
        format: their columns and scale.
        skip_missing: leave out labelled clips of which there are no features (or media) instead of refusing.
    """

    files: Mapping[str, StrPath]
    format: LabelFormat = field(default_factory=LabelFormat)
    skip_missing: bool = False

    @classmethod
    def named(
        cls,
        train: StrPath,
        valid: StrPath | None = None,
        test: StrPath | None = None,
        *,
        format: LabelFormat | None = None,
        skip_missing: bool = False,
    ) -> "LabelFiles":
        """Make them of the paths that are given."""
        files = {name: path for name, path in (("train", train), ("valid", valid), ("test", test)) if path is not None}
        return cls(files=files, format=format or LabelFormat(), skip_missing=skip_missing)

    def read(self) -> dict[str, Labels]:
        """Read them, all with the targets of "train".

        Clips of "train" without any label are left out. A "test" file may lack the targets, the groups and the raters.

        Raises:
            LabelError: a file is missing or wrong, or has no labels, or no training clip has one of some target.
        """
        train = read_labels(self.files["train"], self.format)
        if not train.names:
            raise LabelError(f"{train.path} has no target columns beside Filename")
        empty = [name for name, column in zip(train.names, train.values.T, strict=True) if np.isnan(column).all()]
        if empty:
            raise LabelError(
                f"{train.path} has no label in the column {empty[0]!r}; name the columns that are labels with --targets"
            )
        form = replace(self.format, targets=train.names)
        others = {name: _read(name, path, form, train) for name, path in self.files.items() if name != "train"}
        return {"train": train.labelled(), **others}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What runs are made from, opened and checked, for any number of runs.

    Attributes:
        source: where the rows of the splits come from.
        label_files: the label files, and how they were read.
        labels: what is in them, by split.
        splits: the same with their rows: features, or samples.
        protocol: what a run of several is within them; the table `[protocol]` of its config.toml.
    """

    source: DataSource
    label_files: LabelFiles
    labels: Mapping[str, Labels]
    splits: Mapping[str, Split]
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overlap(self) -> str:
        """A sentence where clips are both trained and validated on; empty where none are."""
        train, valid = self.labels["train"], self.labels.get("valid")
        both = len(set(train.ids) & set(valid.ids)) if valid is not None else 0
        if not both:
            return ""
        return (
            f"{both} of the {len(valid or ())} validation clips are training clips as well: the validation figures say "
            "nothing about new clips"
        )

    @property
    def skipped(self) -> int:
        """Number of labelled clips that were left out because there is nothing of them."""
        return sum(len(self.labels[name]) - len(split) for name, split in self.splits.items())

    def check_groups(self) -> None:
        """See `check_disjoint_splits`."""
        check_disjoint_splits(self.labels)


def check_disjoint_splits(labels: Mapping[str, Labels]) -> None:
    """Refuse training and validation clips of common groups, where groups were asked for.

    Raises:
        LabelError: as `train_head.data.groups.check_disjoint`.
    """
    groups = [labels[name].groups for name in ("train", "valid")]
    if groups[0] is not None and groups[1] is not None:
        check_disjoint(groups[0], groups[1])


def gather_inputs(
    caches: StrPath | Sequence[StrPath], label_files: LabelFiles, *, shared: StrPath | None = None
) -> Inputs:
    """Read the labels, open the caches, load the features.

    Args:
        caches: one cache, or several with equal fingerprints that together hold the clips.
        label_files: which clips, and their labels.
        shared: folder of a memory map that all processes with the same inputs share; of one cache.

    Raises:
        LabelError, CacheError: a file or a clip is missing or wrong.
    """
    paths = [caches] if isinstance(caches, str | PathLike) else list(caches)
    labels = label_files.read()
    stores = open_caches(paths)
    labels = resolve_splits(stores, labels)
    splits = gather(stores, labels, skip_missing=label_files.skip_missing, shared=shared)
    return Inputs(source=CachedFeatures(paths, stores), label_files=label_files, labels=labels, splits=splits)


def rater_agreement(labels: Labels) -> Agreement | None:
    """How well the raters of a split agree; None where no raters were asked for."""
    return None if labels.ratings is None else agreement(labels.ratings, labels.names)


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
    """Read the clips of a file without targets."""
    repeated = form.rater is not None
    try:
        found = read_clips(path, form.group_by, repeated=repeated)
    except NoGroupsError:
        found = read_clips(path, repeated=repeated)
    return replace(found, range=form.range)
