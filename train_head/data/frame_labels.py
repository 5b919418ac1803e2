"""Labels per frame: a folder with a text file per clip, as Aff-Wild2 has them, or a CSV with a time or frame column."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.exchange.tables import FILENAME, Table
from cache.paths import StrPath
from train_head.data.label_columns import choose_columns, read_numbers
from train_head.data.label_format import UNIT, LabelFormat, range_hint
from train_head.data.labels import Labels, groups_of, label_table, match_groups
from train_head.errors import LabelError, unknown

TIME, FRAME = "time", "frame"
NOT_ANNOTATED = -5.0
"""Stands for a missing label in Aff-Wild2's files, unless their range includes it. The row then counts for none of the
targets."""


def are_frame_labels(path: StrPath, form: LabelFormat | None = None) -> bool:
    """Whether a path holds labels per frame.

    It does where it is a folder, or a CSV with a column `time` or `frame` and several rows of one Filename, which are
    not those of several raters.
    """
    place = Path(path)
    if not place.is_file():
        return place.is_dir()
    table = label_table(place)
    if _clock_column(table) is None or (form is not None and form.rater is not None):
        return False
    names = [row[table.header.index(FILENAME)] for row in table.rows]
    return len(set(names)) < len(names)


def read_frame_labels(path: StrPath, form: LabelFormat | None = None, *, check_range: bool = True) -> Labels:
    """Read labels per frame, each clip's rows in their order.

    Args:
        path: a folder of `<id>.txt` files, whose first line names the targets, in any order, and whose other lines are
            one frame each; or a CSV with `Filename`, `time` (seconds) or `frame` (from 0), and the targets.
        form: which columns are targets, the groups, and the range of the numbers.
        check_range: False for predictions, which may lie outside the range of the labels, but not be missing; −5 is a
            number there.

    Raises:
        LabelError: nothing there, a cell that is no number or out of range, rows out of order, or a clip of two
            groups; says where.
    """
    place, form = Path(path), form or LabelFormat()
    if form.rater is not None:
        raise LabelError("--rater goes with one label per clip; average the raters of each frame before")
    labels = _read_folder(place, form) if place.is_dir() else _read_table(place, form)
    if check_range:
        low, high = form.range if form.range != UNIT else (0.0, form.scale)
        if place.is_dir() and not low <= NOT_ANNOTATED <= high:
            labels.values[(labels.values == NOT_ANNOTATED).any(axis=1)] = np.nan
        _check_range(labels, low, high, default=form.range == UNIT and form.scale == 1.0)
    elif np.isnan(labels.values).any():
        raise LabelError(f"{path}: a prediction is missing; every row needs one")
    return replace(labels, values=labels.values / np.float32(form.scale), range=form.range)


def chosen_columns(file: Path, names: Sequence[str]) -> str:
    """Return the text of one clip's file with some of its columns, numbers as they stand there."""
    header, lines = _lines(file)
    at = [header.index(name) for name in names]
    cells = (line.split(",") for line in lines)
    return "\n".join([",".join(names), *(",".join(row[i].strip() for i in at) for row in cells), ""])


def _read_folder(place: Path, form: LabelFormat) -> Labels:
    files = sorted(
        f for f in place.rglob("*.txt") if not any(part.startswith(".") for part in f.relative_to(place).parts)
    )
    if not files:
        raise LabelError(f"{place} holds no .txt file; expected one per clip, with a line per frame")
    header, _ = _lines(files[0])
    names = form.targets or header
    for name in names:
        if name not in header:
            raise LabelError(f"{files[0]}, line 1: {unknown('target', name, header)}")
    parts = [_numbers(file, names, files[0], header) for file in files]
    ids = tuple(file.relative_to(place).with_suffix("").as_posix() for file in files)
    return Labels(
        path=str(place),
        filenames=ids,
        ids=ids,
        names=tuple(names),
        groups=None if form.group_by is None else match_groups(ids, form.group_by, str(place)),
        values=np.concatenate(parts).astype(np.float32),
        ignored=tuple(name for name in header if name not in names),
        offsets=np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
    )


def _lines(file: Path) -> tuple[tuple[str, ...], list[str]]:
    """Return the names in the first line of a file, and its other lines; empty ones at its end are left out."""
    header, *lines = file.read_text(encoding="utf-8-sig").splitlines() or [""]
    if not header.strip():
        what = "is empty" if not lines else "has an empty first line"
        raise LabelError(
            f"{file} {what}; expected the names of the targets and a line per frame: copy the file again, or remove it"
        )
    if all(map(_is_number, header.split(","))):
        raise LabelError(
            f"{file}, line 1: expected the names of the targets, such as valence,arousal, got {header!r}; add them as "
            "the first line"
        )
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(cell.strip() for cell in header.split(",")), lines


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(file: Path, names: Sequence[str], first: Path, expected: Sequence[str]) -> NDArray[np.float64]:
    """(rows, targets) of one file, whose columns may be in another order than those of the first."""
    header, lines = _lines(file)
    if sorted(header) != sorted(expected):
        raise LabelError(
            f"{file}, line 1: the columns are {', '.join(header)}, and those of {first} are {', '.join(expected)}; all "
            "files need the same"
        )
    try:
        values = np.array([line.split(",") for line in lines], np.float64) if lines else np.empty((0, len(header)))
    except ValueError:
        values = np.empty((0, 0))
    if values.shape != (len(lines), len(header)) or not np.isfinite(values).all():
        raise _wrong_line(file, lines, len(header))
    return values[:, [header.index(name) for name in names]]


def _wrong_line(file: Path, lines: Sequence[str], columns: int) -> LabelError:
    """Name the first line that is not so many finite numbers."""
    for number, line in enumerate(lines, 2):
        cells = line.split(",")
        try:
            fits = len(cells) == columns and np.isfinite([float(cell) for cell in cells]).all()
        except ValueError:
            fits = False
        if not fits:
            return LabelError(f"{file}, line {number}: expected {columns} numbers with commas between, got {line!r}")
    return LabelError(f"{file} cannot be read")


def _clock_column(table: Table) -> int | None:
    """The column `time` or `frame`, where there is also a Filename."""
    if FILENAME not in table.header:
        return None
    lowered = [name.casefold() for name in table.header]
    return next((lowered.index(name) for name in (TIME, FRAME) if name in lowered), None)


def _read_table(place: Path, form: LabelFormat) -> Labels:
    table = label_table(place)
    clock = _clock_column(table)
    if clock is None:
        raise LabelError(f"{place} has no column `time` or `frame`, so it does not say to which frames its rows belong")
    named = choose_columns(table, form)
    targets = tuple(i for i in named.targets if i != clock)
    if not targets:
        raise LabelError(f"{place} has no column of numbers beside Filename and {table.header[clock]}")
    when = read_numbers(table, [clock])[:, 0]
    numbers = read_numbers(table, targets)
    names = [row[named.filename] for row in table.rows]
    filenames = tuple(dict.fromkeys(names))
    number = {name: i for i, name in enumerate(filenames)}
    clip = np.array([number[name] for name in names])
    order = np.argsort(clip, kind="stable")
    same = clip[order][1:] == clip[order][:-1]
    back = np.flatnonzero(same & ~(np.diff(when[order]) > 0))
    if len(back):
        row = int(order[back[0] + 1])
        raise LabelError(
            f"{table.where(row)}: {table.header[clock]} {table.rows[row][clock]} of {names[row]!r} does not come after "
            "that of the row before; sort the rows of each clip, and keep one per frame"
        )
    if table.header[clock].casefold() == FRAME and (np.any(when < 0) or np.any(when % 1)):
        row = int(np.flatnonzero((when < 0) | (when % 1 != 0))[0])
        raise LabelError(f"{table.where(row)}: a frame is a whole number from 0, got {table.rows[row][clock]}")
    return Labels(
        path=table.path,
        filenames=filenames,
        ids=filenames,
        names=tuple(table.header[i] for i in targets),
        values=numbers[order].astype(np.float32),
        groups=groups_of(table, named, filenames, clip.tolist(), form.group_by),
        ignored=named.ignored,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(clip, minlength=len(filenames)))]).astype(np.int64),
        clock=table.header[clock].casefold(),
        moments=when[order],
    )


def _check_range(labels: Labels, low: float, high: float, *, default: bool) -> None:
    outside = np.argwhere((labels.values < low) | (labels.values > high))
    if len(outside):
        row, k = outside[0]
        assert labels.offsets is not None
        clip = int(np.searchsorted(labels.offsets, row, side="right")) - 1
        least, most = np.nanmin(labels.values[:, k]), np.nanmax(labels.values[:, k])
        advice = f"give {range_hint(float(least), float(most))}" if default else "mend it, or the range that was given"
        raise LabelError(
            f"{labels.path}: {labels.filenames[clip]}, frame {row - labels.offsets[clip]}: {labels.names[k]} is "
            f"{labels.values[row, k]:g}, outside {low:g} to {high:g}; {advice} ({labels.names[k]} goes from "
            f"{least:g} to {most:g})"
        )
