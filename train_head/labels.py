"""Read label and prediction CSVs: a Filename column, one column per target, and perhaps one that names groups."""

import contextlib
import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.container import StrPath
from cache.ids import clip_id
from train_head.errors import LabelError

FILENAME = "Filename"
_PLAIN_NUMBER = re.compile(r"[-+.0-9eE]+|[-+]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
"""What may stand for a number: `float` also takes 0_1 and the digits of other scripts."""


class NoGroupsError(LabelError):
    """The groups that were asked for are in no column and in no Filename."""


@dataclass(frozen=True, eq=False)
class Labels:
    """One split.

    Attributes:
        path: the CSV.
        filenames: the Filename column as written, in file order.
        ids: the clip ids they stand for.
        names: the targets, in column order.
        values: (clips, targets) float32 in [0, 1]; (clips, 0) where the file has no targets.
        groups: what each clip belongs to, a speaker for example; None where no groups were asked for.
    """

    path: str
    filenames: tuple[str, ...]
    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: NDArray[np.float32]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Labels":
        """The split restricted to some of its rows."""
        return Labels(
            self.path,
            tuple(self.filenames[i] for i in rows),
            tuple(self.ids[i] for i in rows),
            self.names,
            self.values[list(rows)],
            None if self.groups is None else tuple(self.groups[i] for i in rows),
        )


def read_labels(path: StrPath, scale: float = 1.0, *, check_range: bool = True, group_by: str | None = None) -> Labels:
    """Read a CSV of targets.

    Args:
        path: CSV with a header; Filename may be any column.
        scale: values are divided by it; 100 for labels from 0 to 100.
        check_range: whether a value outside [0, 1] is an error (predictions may lie outside).
        group_by: a column that is no target but names each clip's group; where the file has no such column, a
            regular expression that finds the group in Filename (see `match_groups`).

    Raises:
        LabelError: no such file, no Filename, a duplicate or empty clip, a value that is missing, not a number or
            out of range, or an empty group, with its line; or no group in a Filename.
    """
    place = Path(path)
    if not (math.isfinite(scale) and scale > 0):
        raise LabelError(f"the scale of the labels must be above 0, got {scale:g}")
    if not place.is_file():
        raise LabelError(f"there is no label file at {place}")
    with open_csv(place) as rows:
        header = [cell.strip() for cell in next(rows, [])]
        column = _check_header(place, header)
        group_column = header.index(group_by) if group_by is not None and group_by in header else None
        targets = [i for i in range(len(header)) if i not in (column, group_column)]
        filenames: list[str] = []
        values: list[list[float]] = []
        groups: list[str] = []
        lines: dict[str, int] = {}
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{place}, line {rows.line_num}"
            if len(cells) != len(header):
                raise LabelError(f"{where}: {len(cells)} cells, and the header has {len(header)}")
            name = cells[column].strip()
            if clip_id(name) in lines:
                raise LabelError(f"{where}: clip {name!r} stands in line {lines[clip_id(name)]} already")
            lines[clip_id(name)] = rows.line_num
            if not name:
                raise LabelError(f"{where}: the Filename is empty")
            filenames.append(name)
            if group_column is not None:
                groups.append(_group(cells[group_column], f"{where}, {group_by}"))
            values.append([_number(cells[i], f"{where}, {header[i]}", scale, check_range) for i in targets])
    if not filenames:
        raise LabelError(f"{place} has a header and no rows")
    if group_by is not None and group_column is None:
        groups = list(match_groups(filenames, group_by, str(place)))
    array = np.array(values, dtype=np.float32).reshape(len(filenames), len(targets))
    return Labels(
        path=str(place),
        filenames=tuple(filenames),
        ids=tuple(map(clip_id, filenames)),
        names=tuple(header[i] for i in targets),
        values=array,
        groups=None if group_by is None else tuple(groups),
    )


@contextlib.contextmanager
def open_csv(path: Path) -> Iterator[Any]:
    """A `csv.reader` of a file in UTF-8, with a byte-order mark or not.

    Raises:
        LabelError: another encoding, or no CSV, found while reading; says where.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        try:
            yield rows
        except UnicodeDecodeError as error:
            raise LabelError(f"{path} is not in UTF-8 ({error.reason}); save it as CSV in UTF-8") from error
        except csv.Error as error:
            raise LabelError(f"{path}, line {rows.line_num}: no CSV ({error}); does a quote never end?") from error


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


def write_predictions(path: Path, labels: Labels, names: Sequence[str], values: NDArray[np.floating]) -> None:
    """Write predictions with the header and row order of the labels; nine digits keep float32 exact."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([FILENAME, *names])
        for name, row in zip(labels.filenames, values, strict=True):
            writer.writerow([name, *(f"{value:.9g}" for value in row)])
    temporary.replace(path)


def _check_header(place: Path, header: list[str]) -> int:
    if FILENAME not in header:
        raise LabelError(f"{place} has no {FILENAME} column; its header is {','.join(header)!r}")
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise LabelError(f"{place}: column {sorted(twice)[0]!r} stands twice in the header")
    if "" in header:
        raise LabelError(f"{place}: column {header.index('') + 1} has no name")
    return header.index(FILENAME)


def _group(cell: str, where: str) -> str:
    if not cell.strip():
        raise LabelError(f"{where}: the group is empty")
    return cell.strip()


def _number(cell: str, where: str, scale: float, check_range: bool) -> float:
    try:
        if not _PLAIN_NUMBER.fullmatch(cell.strip()):
            raise ValueError
        value = float(cell) / scale
    except ValueError:
        raise LabelError(f"{where}: {cell!r} is not a number") from None
    if not math.isfinite(value):
        raise LabelError(f"{where}: {cell!r} is not a finite number")
    if check_range and not 0.0 <= value <= 1.0:
        hint = "; give --label-scale 100 for labels from 0 to 100" if scale == 1.0 and 1.0 < value <= 100.0 else ""
        raise LabelError(f"{where}: {cell.strip()} is outside 0 to {scale:g}{hint}")
    return value
