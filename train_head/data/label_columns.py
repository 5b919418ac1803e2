"""Which columns of a label file are targets, and the numbers in them."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.exchange.tables import FILENAME, Table
from train_head.data.label_format import LabelFormat
from train_head.errors import LabelError, unknown

MISSING = frozenset("#n/a|#n/a n/a|#na|-1.#ind|-1.#qnan|-nan|1.#ind|1.#qnan|<na>|n/a|na|null|nan|none|".split("|"))
"""Cells that pandas too reads as missing, here in any case; the last is the empty one."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(inf|infinity)", re.IGNORECASE | re.ASCII)
"""What may stand for a number: `float` also takes 0_1 and the digits of other scripts."""
_SIMPLE = re.compile(r"[-+.0-9eE\n]+", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}", re.ASCII)
_PANDAS_INDEX = re.compile(r"Unnamed: \d+")


@dataclass(frozen=True)
class Columns:
    """Where things are in a table.

    Attributes:
        targets: columns of the targets.
        ignored: names of the columns that are nothing.
        filename, group, rater: columns; None where there is none.
    """

    targets: tuple[int, ...]
    ignored: tuple[str, ...]
    filename: int
    group: int | None
    rater: int | None


def choose_columns(table: Table, wanted: LabelFormat) -> Columns:
    """Find the targets: those that are named, or every column of numbers that is nothing else.

    A column in which less than half of the cells are numbers is text, and ignored. One in which some cells are not is
    an error, since a misspelt number must not take its column out of the training. Missing cells decide nothing.

    Args:
        table: the label file.
        wanted: which columns the user has named.

    Raises:
        LabelError: no Filename, a column that is named twice, not at all or not there, or a cell that is no number.
    """
    header = table.header
    _check_header(table, wanted)
    filename = header.index(FILENAME)
    group = header.index(wanted.group_by) if wanted.group_by in header else None
    raters = _find(table, () if wanted.rater is None else (wanted.rater,), "--rater")
    rater = raters[0] if raters else None
    others = [i for i in range(len(header)) if i not in (filename, group, rater)]
    targets = _find(table, wanted.targets, "--targets")
    if filename in targets:
        raise LabelError(f"--targets: {FILENAME} names the clips, and cannot be predicted")
    targets = targets or [i for i in others if not _is_text(table, i)]
    ignored = tuple(header[i] or f"column {i + 1}" for i in others if i not in targets)
    return Columns(tuple(targets), ignored, filename, group, rater)


def read_numbers(table: Table, columns: Sequence[int]) -> NDArray[np.float64]:
    """Return the numbers of some columns, NaN where a cell is missing.

    A comma is a decimal comma where cells are separated by something else, and no cell says otherwise.

    Args:
        table: the label file.
        columns: which of its columns.

    Returns:
        (rows, columns) float64.

    Raises:
        LabelError: a cell is not a finite number, or could be read as two numbers; names it.
    """
    rows, values = range(len(table.rows)), np.empty((len(table.rows), len(columns)))
    simple = [_simple(table, column) for column in columns]
    comma = any(numbers is None for numbers in simple) and _has_decimal_commas(table, columns)
    for k, (column, numbers) in enumerate(zip(columns, simple, strict=True)):
        values[:, k] = [_number(table, i, column, comma) for i in rows] if numbers is None else numbers
    for i, k in np.argwhere(np.isinf(values)):
        raise LabelError(f"{where(table, i, columns[k])}: {table.rows[i][columns[k]]!r} is not a finite number")
    return values


def refuse_text(table: Table, columns: Columns) -> None:
    """Refuse a file without targets where a cell looks like a label that is not a number.

    Args:
        table: the label file.
        columns: what its columns mean.

    Raises:
        LabelError: names the first such cell.
    """
    for i, cells in enumerate(table.rows):
        for k, cell in enumerate(cells):
            if k not in (columns.filename, columns.group, columns.rater) and not (is_missing(cell) or is_number(cell)):
                raise _no_number(table, i, k)


def is_missing(cell: str) -> bool:
    """Return whether a cell stands for a missing label."""
    return cell.casefold() in MISSING


def is_number(cell: str) -> bool:
    """Return whether a cell is a number, with a decimal point or a decimal comma; infinity is one here."""
    plain = _plain(cell)
    return bool(_NUMBER.fullmatch(plain) or _DECIMAL_COMMA.fullmatch(plain))


def where(table: Table, row: int, column: int) -> str:
    """Return `labels.csv, line 3, Joy`, for errors."""
    return f"{table.where(row)}, {table.header[column]}"


def _plain(cell: str) -> str:
    return cell.replace("\u2212", "-")  # the minus sign of typesetting


def _simple(table: Table, column: int) -> NDArray[np.float64] | None:
    """Return the numbers of a column that holds plain ones only, which is quick to see; None for any other."""
    cells = [cells[column] for cells in table.rows]
    if _SIMPLE.fullmatch("\n".join(cells)) is None:
        return None
    try:
        return np.array(list(map(float, cells)))
    except ValueError:
        return None


def _number(table: Table, row: int, column: int, comma: bool) -> float:
    cell = table.rows[row][column]
    if is_missing(cell):
        return math.nan
    if not is_number(cell):
        raise _no_number(table, row, column)
    return float(_plain(cell).replace(",", ".") if comma else _plain(cell))


def _is_text(table: Table, column: int) -> bool:
    if _simple(table, column) is not None:
        return False
    present = [cells[column] for cells in table.rows if not is_missing(cells[column])]
    return 2 * sum(map(is_number, present)) < len(present)


def _no_number(table: Table, row: int, column: int) -> LabelError:
    return LabelError(
        f"{where(table, row, column)}: {table.rows[row][column]!r} is not a number; write one, leave the cell empty "
        "where the label is missing, or choose other columns with --targets"
    )


def _has_decimal_commas(table: Table, columns: Sequence[int]) -> bool:
    cells = [(i, k, _plain(cells[k])) for i, cells in enumerate(table.rows) for k in columns if cells[k]]
    commas = [place for place in cells if _DECIMAL_COMMA.fullmatch(place[2])]
    if not commas:
        return False
    row, column, cell = commas[0]
    here = f"{where(table, row, column)}: {cell!r}"
    if table.delimiter == ",":
        raise LabelError(
            f"{here} has a comma, which separates the cells of this file too; write decimal points, or separate the "
            "cells by ;"
        )
    point = next((place for place in cells if "." in place[2] and _NUMBER.fullmatch(place[2])), None)
    if point is not None:
        raise LabelError(
            f"{here} has a decimal comma, and {where(table, point[0], point[1])}: {point[2]!r} a decimal point; write "
            "all numbers in one way"
        )
    if all(_THOUSANDS.fullmatch(cell) for _, _, cell in commas):
        raise LabelError(f"{here} may have a decimal comma or stand for thousands; write decimal points")
    return True


def _check_header(table: Table, wanted: LabelFormat) -> None:
    twice = [name for name, times in Counter(table.header).items() if times > 1 and name]
    if twice:
        raise LabelError(f"{table.path}: column {min(twice)!r} stands twice in the header")
    unnamed = [i for i, name in enumerate(table.header) if not name or _PANDAS_INDEX.fullmatch(name)]
    if unnamed and not wanted.targets:
        name = table.header[unnamed[0]]
        what = f"column {name!r} had no name" if name else f"column {unnamed[0] + 1} has no name"
        raise LabelError(
            f"{table.path}: {what}; an index that pandas wrote looks so: save with to_csv(…, index=False), or "
            "choose the columns with --targets"
        )


def _find(table: Table, names: Sequence[str], option: str) -> list[int]:
    """Return where named columns are; refuse those that the table lacks."""
    for name in names:
        if name not in table.header:
            raise LabelError(f"{table.path}, {option}: {unknown('column', name, filter(None, table.header))}")
    return [table.header.index(name) for name in names]
