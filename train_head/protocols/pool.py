"""Training and validation clips as one split."""

import csv
import io
from dataclasses import replace

import torch

from train_head.data import Split
from train_head.errors import LabelError
from train_head.labels import FILENAME, Labels
from train_head.train import Inputs


def pool(inputs: Inputs) -> Split:
    """The clips of "train", then those of "valid" where there is one, on the same frames.

    Raises:
        LabelError: a clip is in both; see `check_apart`.
    """
    train, valid = inputs.splits["train"], inputs.splits.get("valid")
    if valid is None:
        return train
    one, other = train.labels, valid.labels
    check_apart(one, other)
    groups = None if one.groups is None or other.groups is None else one.groups + other.groups
    labels = replace(
        one,
        path=f"{one.path} and {other.path}",
        filenames=one.filenames + other.filenames,
        ids=one.ids + other.ids,
        values=torch.cat([train.targets.cpu(), valid.targets.cpu()]).numpy(),
        groups=groups,
    )
    return Split(
        labels,
        train.frames,
        torch.cat([train.starts, valid.starts]),
        torch.cat([train.lengths, valid.lengths]),
        torch.cat([train.targets, valid.targets]),
    )


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
    """The clips of both that were used, cells as written: Filename, the targets and, where all have it, the groups."""
    sheets = [_read(inputs.files[name]) for name in ("train", "valid") if name in inputs.files]
    columns = [FILENAME, *inputs.labels["train"].names]
    if inputs.group_by not in columns and all(inputs.group_by in sheet[0] for sheet in sheets):
        columns.append(str(inputs.group_by))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    held = {name for split in inputs.splits.values() for name in split.labels.filenames}
    for header, *rows in sheets:
        at = [header.index(column) for column in columns]
        writer.writerows([cells[i] for i in at] for cells in rows if cells[at[0]] in held)
    return text.getvalue()


def _read(path: object) -> list[list[str]]:
    with open(str(path), newline="", encoding="utf-8-sig") as file:
        rows = ([cell.strip() for cell in cells] for cells in csv.reader(file))
        return [cells for cells in rows if any(cells)]
