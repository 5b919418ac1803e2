"""Training and validation clips as one split."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.exchange.tables import Table
from cache.ids import clip_id
from cache.system.atomic_file import write_atomically
from train_head.data.frame_labels import chosen_columns
from train_head.data.label_columns import is_number
from train_head.data.labels import FILENAME, Labels, label_table
from train_head.data.predictions import file_of, read_folder, write_folder
from train_head.data.splits import Split, joined
from train_head.errors import LabelError
from train_head.reports.tables import csv_text
from train_head.runs.inputs import Inputs


def pool(inputs: Inputs) -> Split:
    """Join the clips of "train" and those of "valid" where there is one, on the same frames.

    Raises:
        LabelError: a clip is in both, see `check_apart`; or one is a table of labels per frame and the other a folder.
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
    if one.clock != other.clock:
        layouts = " and ".join(f"a table with {p.clock!r}" if p.clock else "a folder" for p in (one, other))
        raise LabelError(f"{one.path} and {other.path} are {layouts}; give both in one layout")
    moments = None
    if one.moments is not None and other.moments is not None:
        moments = np.concatenate([one.moments, other.moments])
    return {"offsets": np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]]), "moments": moments}


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


def write_pooled_labels(inputs: Inputs, folder: Path, name: str) -> Path:
    """Write the labels of all used clips where they are not yet there; numbers stay as written.

    Args:
        inputs: with the label files.
        folder: of the runs.
        name: of the CSV, or of the folder where labels are folders.

    Returns:
        The CSV or folder.
    """
    labels = inputs.labels["train"]
    place = file_of(folder, name, labels)
    if labels.is_folder:
        texts = _pooled_texts(inputs, labels.names)
        if read_folder(place) != texts:
            write_folder(place, texts)
        return place
    content = _pooled_csv(inputs, labels).encode()
    if not place.is_file() or place.read_bytes() != content:
        write_atomically(place, content)
    return place


def _pooled_texts(inputs: Inputs, targets: Sequence[str]) -> dict[str, str]:
    """Return by clip the text of its label file, with the targets alone."""
    return {
        clip: chosen_columns(Path(inputs.label_files.files[name]) / f"{clip}.txt", targets)
        for name, split in inputs.splits.items()
        if name != "test"
        for clip in split.labels.filenames
    }


def _pooled_csv(inputs: Inputs, labels: Labels) -> str:
    """Return the label rows of all used clips: Filename, when they are, targets, raters, groups where all have them.

    Numbers get decimal points, and stand as written otherwise.
    """
    files, form = inputs.label_files.files, inputs.label_files.format
    tables = [label_table(files[name]) for name in ("train", "valid") if name in files]
    numbers = [*([labels.clock] if labels.clock else []), *labels.names]
    columns = [FILENAME, *numbers]
    if form.rater is not None:
        columns.append(form.rater)
    if form.group_by is not None and all(form.group_by in table.header for table in tables):
        columns.append(form.group_by)
    columns = list(dict.fromkeys(columns))
    used = {clip_id(name) for key, split in inputs.splits.items() if key != "test" for name in split.labels.filenames}
    return csv_text([columns, *(row for table in tables for row in _rows(table, columns, numbers, used))])


def _rows(table: Table, columns: Sequence[str], numbers: Sequence[str], held: Container[str]) -> Iterator[list[str]]:
    clocks = {name.casefold(): i for i, name in reversed(list(enumerate(table.header)))}  # `Time` is `time`
    header = list(table.header)
    at = [(header.index(name) if name in header else clocks[name], name in numbers) for name in columns]
    for cells in table.rows:
        if clip_id(cells[at[0][0]]) in held:
            yield [cells[i].replace(",", ".") if number and is_number(cells[i]) else cells[i] for i, number in at]
