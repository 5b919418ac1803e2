"""Read label and prediction CSVs: a Filename column, one column per target, and perhaps some that mean other things."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import TableError
from cache.exchange.tables import FILENAME, Table, read_table
from cache.ids import clip_id
from cache.paths import StrPath
from train_head.data.label_columns import (
    Columns,
    choose_columns,
    is_missing,
    read_numbers,
    refuse_text,
    where,
)
from train_head.data.label_format import UNIT, LabelFormat, Range, range_hint
from train_head.data.raters import Ratings, looks_like_raters
from train_head.errors import LabelError
from train_head.targets import CLIP, FRAME, Targets

__all__ = [
    "FILENAME",
    "Labels",
    "NoGroupsError",
    "label_table",
    "read_clips",
    "read_labels",
]


class NoGroupsError(LabelError):
    """The groups that were asked for are in no column and in no Filename."""


@dataclass(frozen=True, eq=False)
class Labels:
    """One split.

    Attributes:
        path: the CSV.
        filenames: the Filename column as written, in file order.
        ids: the clip ids they stand for, as far as they say; `train_head.data.splits.resolve` finds those of a cache.
        names: the targets, in column order or in the order in which they were named.
        values: (clips, targets) float32 in `range`, or (rows, targets) for labels per frame; NaN where a label is
            missing. (clips, 0) where the file has no targets.
        groups: what each clip belongs to, a speaker for example; None where no groups were asked for.
        ignored: columns of the file that mean nothing here.
        range: the ends of the labels' scale.
        unlabelled: clips that were left out because none of their labels is there.
        ratings: the labels of single raters, whose mean `values` is; None where no raters were asked for.
        offsets: (clips + 1,) int64 where there are labels per frame: those of clip i are the rows from offsets[i] to
            offsets[i + 1] of `values`. None where there is one row per clip.
        clock: column that says when a row is: "time" in seconds, "frame" by number from 0; empty where rows follow each
            other, one per frame.
        moments: (rows,) float64, what stands in that column.
        cut: clips of which rows were left out because they were not predicted, each with both numbers of rows.
    """

    path: str
    filenames: tuple[str, ...]
    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: NDArray[np.float32]
    groups: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    range: Range = UNIT
    unlabelled: int = 0
    ratings: Ratings | None = None
    offsets: NDArray[np.int64] | None = None
    clock: str = ""
    moments: NDArray[np.float64] | None = None
    cut: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> Targets:
        """What is predicted."""
        return Targets(names=self.names, resolution=FRAME if self.by_frame else CLIP, range=self.range)

    @property
    def by_frame(self) -> bool:
        """Whether there are labels per frame."""
        return self.offsets is not None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(clips,) rows of each clip."""
        return np.ones(len(self), np.int64) if self.offsets is None else np.diff(self.offsets)

    @property
    def is_folder(self) -> bool:
        """Whether they are a folder with a file per clip, and so are predictions of them; else a table."""
        return self.by_frame and not self.clock

    def rows_of(self, clips: Sequence[int]) -> NDArray[np.int64]:
        """Return the numbers of the rows of some clips."""
        if self.offsets is None:
            return np.asarray(clips, np.int64)
        parts = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in clips]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def moments_of(self, clip: int) -> NDArray[np.float64]:
        """(rows,) when the rows of a clip are, by `clock`: numbers from 0 where it is empty."""
        if self.moments is None:
            return np.arange(self.lengths[clip], dtype=np.float64)
        return self.moments[self.rows_of([clip])]

    def take(self, clips: Sequence[int]) -> "Labels":
        """Return the split restricted to some of its clips."""
        rows, lengths = self.rows_of(clips), self.lengths[list(clips)]
        return replace(
            self,
            filenames=tuple(self.filenames[i] for i in clips),
            ids=tuple(self.ids[i] for i in clips),
            values=self.values[rows],
            groups=None if self.groups is None else tuple(self.groups[i] for i in clips),
            ratings=None if self.ratings is None else self.ratings.take(clips),
            offsets=None if self.offsets is None else np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            moments=None if self.moments is None else self.moments[rows],
        )

    @property
    def has_label(self) -> NDArray[np.bool_]:
        """(clips,) whether any label of a clip is there."""
        labelled = np.atleast_1d(~np.isnan(self.values).all(axis=1))
        if self.offsets is None:
            return labelled
        return np.array([labelled[a:b].any() for a, b in itertools.pairwise(self.offsets)], np.bool_)

    def labelled(self) -> "Labels":
        """Return the split without the clips that have no label at all."""
        rows = np.flatnonzero(self.has_label).tolist()
        if len(rows) == len(self):
            return self
        return replace(self.take(rows), unlabelled=self.unlabelled + len(self) - len(rows))

    @property
    def unit_values(self) -> NDArray[np.float32]:
        """Training targets: (clips, targets) float32 with the range mapped to [0, 1]."""
        if self.range == UNIT:
            return self.values
        low, high = self.range
        return ((self.values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def read_labels(path: StrPath, form: LabelFormat | None = None, *, check_range: bool = True) -> Labels:
    """Read a CSV of targets.

    Args:
        path: CSV with a header; see `cache.exchange.tables.read_table`. Filename may be any column.
        form: which columns mean what, and the scale of the numbers.
        check_range: False for predictions, which may lie outside the range of the labels, but not be missing.

    Raises:
        LabelError: no such file, no Filename, a duplicate or empty clip, a value that is not a number or out of range,
            or an empty group, with its line; no column of numbers; or no group in a Filename.
    """
    form = form or LabelFormat()
    table = label_table(path)
    columns = choose_columns(table, form)
    filenames, rows = _clips(table, columns, repeated=form.rater is not None)
    if not columns.targets:
        refuse_text(table, columns)
    numbers = read_numbers(table, columns.targets)
    if check_range:
        _check_range(table, columns, numbers, form)
    else:
        _check_present(table, columns, numbers)
    numbers /= form.scale
    ratings = None
    if columns.rater is not None:
        ratings = _ratings(table, columns, columns.rater, rows, numbers)
        numbers = ratings.mean(len(filenames))
    return Labels(
        path=table.path,
        filenames=filenames,
        ids=tuple(map(clip_id, filenames)),
        names=tuple(table.header[i] for i in columns.targets),
        values=numbers.astype(np.float32),
        groups=groups_of(table, columns, filenames, rows, form.group_by),
        ignored=columns.ignored,
        range=form.range,
        ratings=ratings,
    )


def read_split(split: str, path: StrPath, form: LabelFormat) -> Labels:
    """Read the labels of a split; those of "test" may lack the raters and the groups.

    Args:
        split: its name.
        path: as for `read_labels`.
        form: as for `read_labels`.

    Raises:
        LabelError: as for `read_labels`.
    """
    if split != "test":
        return read_labels(path, form)
    if form.rater not in label_table(path).header:
        form = replace(form, rater=None)
    try:
        return read_labels(path, form)
    except NoGroupsError:
        return read_labels(path, replace(form, group_by=None))


def read_clips(path: StrPath, group_by: str | None = None, *, repeated: bool = False) -> Labels:
    """Read the Filename column alone, and the groups where asked for.

    Args:
        path: as for `read_labels`.
        group_by: as of `LabelFormat`.
        repeated: whether a clip may have several rows, one for each rater.

    Raises:
        LabelError: as for `read_labels`, but for the values.
    """
    table = label_table(path)
    group = table.header.index(group_by) if group_by in table.header else None
    columns = Columns((), (), table.header.index(FILENAME), group, None)
    filenames, rows = _clips(table, columns, repeated)
    return Labels(
        path=table.path,
        filenames=filenames,
        ids=tuple(map(clip_id, filenames)),
        names=(),
        values=np.empty((len(filenames), 0), np.float32),
        groups=groups_of(table, columns, filenames, rows, group_by),
    )


def label_table(path: StrPath) -> Table:
    """Read a table with a Filename column and at least one row, each with the header's number of cells.

    Raises:
        LabelError: no such file, no CSV, no Filename, no rows, or one of another length.
    """
    place = Path(path)
    if not place.is_file():
        raise LabelError(f"there is no label file at {place}")
    try:
        table = read_table(place)
        table.check_cells()
    except TableError as error:
        raise LabelError(str(error)) from error
    if FILENAME not in table.header:
        raise LabelError(f"{place} has no {FILENAME} column; its header is {','.join(table.header)!r}")
    if not table.rows:
        raise LabelError(f"{place} has a header and no rows")
    return table


def match_groups(filenames: Sequence[str], pattern: str, where: str = "the label file") -> tuple[str, ...]:
    r"""Find each clip's group in its Filename.

    Args:
        filenames: as written in a label file.
        pattern: regular expression, searched anywhere in the name; its one group is the clip's group, or the whole
            match where it has none: `Actor_(\d+)`.
        where: the file, for the error.

    Raises:
        LabelError: the pattern is no regular expression, has several groups, or fails on a name; names the first five.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise LabelError(f"{pattern!r} is neither a column of {where} nor a regular expression: {error}") from error
    if compiled.groups > 1:
        raise LabelError(f"the regular expression {pattern!r} has {compiled.groups} groups, expected one or none")
    matches = [compiled.search(name) for name in filenames]
    found = [match[compiled.groups] if match else None for match in matches]
    failed = [name for name, group in zip(filenames, found, strict=True) if not group]
    if failed:
        raise NoGroupsError(
            f"{pattern!r} is no column of {where}, and as a regular expression finds no group in {len(failed)} of its "
            f"{len(filenames)} Filenames (first: {', '.join(failed[:5])})"
        )
    return tuple(group for group in found if group)


def _clips(table: Table, columns: Columns, repeated: bool) -> tuple[tuple[str, ...], list[int]]:
    """Return the clips in the order in which they first come, and for every row the number of its clip."""
    rows: list[int] = []
    known: dict[str, int] = {}
    padded: dict[str, str] = {}  # 1 and 00001 are one clip; 1 and 01 may be two files
    for i, cells in enumerate(table.rows):
        name = cells[columns.filename]
        if not name:
            raise LabelError(f"{table.where(i)}: the Filename is empty")
        same = next((other for other in (name, clip_id(name), padded.get(name)) if other in known), None)
        if same is None:
            known[name], padded[clip_id(name)] = len(known), name
        rows.append(known[same or name])
    if len(known) < len(rows) and not repeated:
        raise _duplicate(table, columns, rows)
    return tuple(known), rows


def _duplicate(table: Table, columns: Columns, rows: Sequence[int]) -> LabelError:
    """Return the error for a clip with several rows; names a column that may be the raters'."""
    first: dict[int, int] = {}
    i = next(i for i, clip in enumerate(rows) if first.setdefault(clip, i) != i)
    rater = looks_like_raters(table, columns, rows)
    hint = f"; if these are several raters, give --rater {rater!r}" if rater else ""
    name, line = table.rows[i][columns.filename], table.lines[first[rows[i]]]
    return LabelError(f"{table.where(i)}: clip {name!r} stands in line {line} already{hint}")


def _ratings(table: Table, columns: Columns, rater: int, rows: Sequence[int], numbers: NDArray[np.float64]) -> Ratings:
    names = [cells[rater] for cells in table.rows]
    seen: dict[tuple[int, str], int] = {}
    for i, (clip, name) in enumerate(zip(rows, names, strict=True)):
        if is_missing(name):
            raise LabelError(f"{where(table, i, rater)}: the rater is empty")
        if (first := seen.setdefault((clip, name), i)) != i:
            raise LabelError(
                f"{table.where(i)}: rater {name!r} rated clip {table.rows[i][columns.filename]!r} in line "
                f"{table.lines[first]} already"
            )
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Ratings(tuple(number), np.array([number[name] for name in names]), np.array(rows), numbers)


def groups_of(
    table: Table, columns: Columns, filenames: tuple[str, ...], rows: Sequence[int], group_by: str | None
) -> tuple[str, ...] | None:
    """Return the group of each clip, from its column or its Filename; None where no groups are asked for.

    Args:
        table: of labels.
        columns: which of them is the group's.
        filenames: of the clips, in the order in which they first come.
        rows: the number of the clip of each row.
        group_by: as of `LabelFormat`.

    Raises:
        LabelError: a group is empty, a clip is of two, or no Filename has one.
    """
    if group_by is None:
        return None
    if columns.group is None:
        return match_groups(filenames, group_by, table.path)
    groups: dict[int, str] = {}
    for i, (clip, cells) in enumerate(zip(rows, table.rows, strict=True)):
        group = cells[columns.group]
        if not group:
            raise LabelError(f"{where(table, i, columns.group)}: the group is empty")
        if groups.setdefault(clip, group) != group:
            raise LabelError(
                f"{where(table, i, columns.group)}: clip {filenames[clip]!r} is of group {group!r} here, and of "
                f"{groups[clip]!r} before; a clip belongs to one group"
            )
    return tuple(groups.values())


def _check_range(table: Table, columns: Columns, numbers: NDArray[np.float64], form: LabelFormat) -> None:
    low, high = form.range if form.range != UNIT else (0.0, form.scale)
    outside = np.argwhere((numbers < low) | (numbers > high))
    if not len(outside):
        return
    row, k = outside[0]
    name, cell = table.header[columns.targets[k]], table.rows[row][columns.targets[k]]
    least, most = np.nanmin(numbers[:, k]), np.nanmax(numbers[:, k])
    default = form.scale == 1.0 and form.range == UNIT
    advice = [f"give {range_hint(least, most)}" if default else "mend it, or the scale that was given"]
    if not form.targets:
        others_fit = len(np.unique(outside[:, 1])) < len(columns.targets)
        advice.insert(0 if others_fit else 1, "name the columns that are labels with --targets")
    raise LabelError(
        f"{where(table, row, columns.targets[k])}: {cell} is outside {low:g} to {high:g}; {', or '.join(advice)} "
        f"({name} goes from {least:g} to {most:g})"
    )


def _check_present(table: Table, columns: Columns, numbers: NDArray[np.float64]) -> None:
    for row, k in np.argwhere(np.isnan(numbers)):
        cell = table.rows[row][columns.targets[k]]
        raise LabelError(f"{where(table, row, columns.targets[k])}: {cell!r} is no prediction; write a number")
