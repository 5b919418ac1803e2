"""Read labels or predictions, per clip or per frame, whichever a path holds."""

from dataclasses import replace

import numpy as np

from cache.paths import StrPath
from train_head.data.frame_labels import are_frame_labels, read_frame_labels
from train_head.data.image_rows import has_image_rows, read_image_rows
from train_head.data.label_format import LabelFormat
from train_head.data.labels import (
    FILENAME,
    Labels,
    NoGroupsError,
    label_table,
    match_groups,
    read_clips,
    read_labels,
    read_split,
)
from train_head.errors import LabelError


def read_any_labels(path: StrPath, form: LabelFormat | None = None, *, check_range: bool = True) -> Labels:
    """Read labels; arguments and errors as of `read_labels` and `read_frame_labels`.

    Predictions (without `check_range`) may be a file with a row per frame that is named by its image.
    """
    if not check_range and has_image_rows(path):
        return read_image_rows(path).predictions()
    read = read_frame_labels if are_frame_labels(path, form) else read_labels
    return read(path, form, check_range=check_range)


def read_beside(split: str, path: StrPath, form: LabelFormat, train: Labels) -> Labels:
    """Read a split beside "train"; a "test" file may lack the targets, the groups and the raters.

    Args:
        split: its name.
        path: labels per frame where those of the training are, else a CSV; "test" may be a template of a submission,
            which gives clips and rows.
        form: with the targets of the training.
        train: labels, or predictions, of the same targets.

    Raises:
        LabelError: the file is wrong or lacks a target; or there is no label in it, and it is not "test".
    """
    found = (_read_frames if train.by_frame else _read_clips)(split, path, form, train)
    if not np.isnan(found.values).all() or not found.names:
        return found
    if split == "test":
        return replace(found, names=(), values=found.values[:, :0], ratings=None)
    raise LabelError(f"{path} has no label at all")


def _read_clips(split: str, path: StrPath, form: LabelFormat, train: Labels) -> Labels:
    header = label_table(path).header
    lacking = [target for target in train.names if target not in header]
    if split == "test" and len(lacking) == len(train.names):
        repeated = form.rater in header
        try:
            found = read_clips(path, form.group_by, repeated=repeated)
        except NoGroupsError:
            found = read_clips(path, repeated=repeated)
        return replace(found, range=form.range)
    if lacking:
        others = ", ".join(name for name in header if name != FILENAME)
        raise LabelError(
            f"{path} has no column {lacking[0]!r} among {others or 'none'}; {train.path} has the targets "
            f"{', '.join(train.names)}, and both need the same; name those to use with --targets"
        )
    return read_split(split, path, form)


def _read_frames(split: str, path: StrPath, form: LabelFormat, train: Labels) -> Labels:
    if split == "test" and has_image_rows(path):
        clips = read_image_rows(path).clips()
        groups = match_groups(clips.filenames, form.group_by, clips.path) if form.group_by else None
        return replace(clips, groups=groups, range=form.range)
    if not are_frame_labels(path, form):
        raise LabelError(f"{path} has no labels per frame, and {train.path} has; give such a folder or table")
    try:
        return read_frame_labels(path, form)
    except NoGroupsError:
        if split != "test":
            raise
        return read_frame_labels(path, replace(form, group_by=None))
