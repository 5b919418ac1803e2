"""Training and validation clips as one split."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cache.exchange.tables import Table
from cache.ids import clip_id
from train_head.data.label_columns import is_number
from train_head.data.labels import FILENAME, Labels, label_table
from train_head.data.splits import Split, joined
from train_head.errors import LabelError, TrainSettingsError
from train_head.reports.tables import csv_text
from train_head.runs.inputs import Inputs


def pool(inputs: Inputs) -> Split:
    """Join the clips of "train" and those of "valid" where there is one, on the same frames.

    Raises:
        LabelError: a clip is in both; see `check_apart`.
    """
    train, valid = inputs.splits["train"], inputs.splits.get("valid")
    if valid is None:
        return train
    one, other = train.labels, valid.labels
    check_apart(one, other)
    labels = replace(
        one,
        path=f"{one.path} and {other.path}",
        filenames=one.filenames + other.filenames,
        ids=one.ids + other.ids,
        values=np.concatenate([one.values, other.values]),
        groups=None if one.groups is None or other.groups is None else one.groups + other.groups,
        ratings=one.ratings.joined(other.ratings, len(one)) if one.ratings and other.ratings else None,
        **_joined_rows(one, other),
    )
    return joined(train, valid, labels)


def _joined_rows(one: Labels, other: Labels) -> dict[str, Any]:
    """The fields of labels per frame, of both."""
    if one.offsets is None or other.offsets is None:
        return {}
    moments = None
    if one.moments is not None and other.moments is not None:
        moments = np.concatenate([one.moments, other.moments])
    return {"offsets": np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]]), "moments": moments}


def refuse_frames(inputs: Inputs, what: str, asked: bool = True) -> None:
    """Refuse a protocol that does not know labels per frame.

    Raises:
        TrainSettingsError: it is asked for, and there are such labels.
    """
    if asked and inputs.labels["train"].by_frame:
        raise TrainSettingsError(
            f"{what} does not support labels per frame yet; train single runs on your own splits, or use --seeds"
        )


def trainable(split: Split) -> Split:
    """The clips that have a label, which are all of a training split; the others may only be predicted."""
    rows = np.flatnonzero(split.labels.has_label).tolist()
    return split if len(rows) == len(split) else split.take(rows)


def check_apart(one: Labels, other: Labels) -> None:
    """Refuse two label files that share clips.

    Raises:
        LabelError: says how many clips are in both and names the first five.
    """
    both = sorted(set(one.ids) & set(other.ids))
    if both:
        raise LabelError(
            f"{len(both)} clips are in {one.path} and in {other.path} (first: {', '.join(both[:5])}), and would count "
            "twice; keep each in one"
        )


def pooled_csv(inputs: Inputs) -> str:
    """Return the label rows of all used clips: Filename, targets, raters and, where all have them, groups.

    Numbers get decimal points, and stand as written otherwise.
    """
    files, form = inputs.label_files.files, inputs.label_files.format
    tables = [label_table(files[name]) for name in ("train", "valid") if name in files]
    targets = inputs.labels["train"].names
    columns = [FILENAME, *targets]
    if form.rater is not None:
        columns.append(form.rater)
    if form.group_by is not None and all(form.group_by in table.header for table in tables):
        columns.append(form.group_by)
    columns = list(dict.fromkeys(columns))
    used = {clip_id(name) for key, split in inputs.splits.items() if key != "test" for name in split.labels.filenames}
    return csv_text([columns, *(row for table in tables for row in _rows(table, columns, targets, used))])


def _rows(table: Table, columns: Sequence[str], targets: Sequence[str], held: Container[str]) -> Iterator[list[str]]:
    at = [(table.header.index(column), column in targets) for column in columns]
    for cells in table.rows:
        if clip_id(cells[at[0][0]]) in held:
            yield [cells[i].replace(",", ".") if number and is_number(cells[i]) else cells[i] for i, number in at]
