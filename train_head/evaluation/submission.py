"""Write and check the prediction file that a challenge expects.

For Hume-Vidmimic2 it has the layout of the labels: their header, one row per clip with an integer Filename without
padding, in ascending order, and intensities from 0 to 1.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cache.exchange.tables import Table
from cache.ids import clip_id, find_ids
from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.label_columns import choose_columns, is_missing
from train_head.data.label_format import UNIT, LabelFormat, Range
from train_head.data.labels import FILENAME, label_table
from train_head.data.predictions import predictions_csv
from train_head.errors import LabelError

SHOWN = 5


def check_submission(predictions: StrPath, labels_or_template: StrPath, form: LabelFormat | None = None) -> list[str]:
    """List everything for which a challenge's server would reject a prediction file, or score it wrongly.

    Args:
        predictions: the CSV to be submitted.
        labels_or_template: CSV with the expected header and Filenames; its values are ignored. If it has Filenames
            only, any target names are accepted.
        form: how that file is to be read; a submission has only the target columns.

    Returns:
        One sentence per problem, each with a count and the first five; empty if there are none.

    Raises:
        LabelError: a file is missing, or the second has no Filename column or no rows.
    """
    form = form or LabelFormat()
    wanted, given = _read_reference(labels_or_template, form), _read_as_written(predictions)
    expected = wanted.header
    problems: list[str] = []
    if given.header != expected and (len(expected) > 1 or given.header[:1] != (FILENAME,)):
        problems.append(f"the header is {','.join(given.header)!r}, expected {','.join(expected)!r}")
    if FILENAME not in given.header:
        return problems
    ragged = [line for line, cells in zip(given.lines, given.rows, strict=True) if len(cells) != len(given.header)]
    problems += problem(ragged, f"rows do not have the header's {len(given.header)} cells", "line ")
    return (
        problems + _clip_problems(_filenames(given), _filenames(wanted)) + value_problems(_values_of(given), form.range)
    )


def write_submission(
    path: StrPath,
    ids: Sequence[str],
    names: Sequence[str],
    values: ArrayLike,
    template: StrPath | None = None,
    bounds: Range = UNIT,
) -> int:
    """Write the file that a challenge expects.

    Args:
        path: output file.
        ids: clip ids; if all are integers they are written without padding and sorted as numbers, otherwise as text.
        names: (targets,), the header after Filename.
        values: (clips, targets) intensities, clipped to the bounds and written with nine digits, which keep float32
            exact.
        template: CSV whose Filenames, row order and, if it has targets, column order are used instead.
        bounds: the range of the labels.

    Returns:
        The number of values outside the bounds.

    Raises:
        LabelError: a value is not finite, a clip is listed twice, or clips or targets differ from the template's; with
            a count and the first five.
        ValueError: the shapes differ.
    """
    array = np.asarray(values, np.float64)
    if array.shape != (len(ids), len(names)):
        raise ValueError(f"values have shape {array.shape}, expected ({len(ids)}, {len(names)})")
    broken = [f"{ids[i]} {names[k]}" for i, k in np.argwhere(~np.isfinite(array))]
    refuse_problems(problem(broken, "predictions are not finite"), path)
    refuse_problems(problem(repeated(list(ids if template else map(clip_id, ids))), "clips were predicted twice"), path)
    if template is not None:
        columns, rows = _as_template(template, ids, names)
    else:
        columns, unpadded = list(range(len(names))), _are_integers(ids)
        order = sorted(range(len(ids)), key=lambda i: (int(ids[i]) if unpadded else 0, ids[i]))
        rows = [(str(int(ids[i])) if unpadded else ids[i], i) for i in order]
    values = np.clip(array[[i for _, i in rows]][:, columns], *bounds)
    put(Path(path), predictions_csv([name for name, _ in rows], [names[k] for k in columns], values))
    return int(((array < bounds[0]) | (array > bounds[1])).sum())


def put(path: Path, text: str) -> None:
    """Write a file atomically; write into a device or a pipe.

    Args:
        path: output file.
        text: its content.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path.resolve(), text.encode())


def template_clips(template: StrPath, names: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Find the clips that a template lists, and check the template before any clip is predicted.

    Args:
        template: as for `write_submission`.
        names: the targets that will be predicted.
        ids: the available clips.

    Returns:
        Their indices in `ids`, ascending.

    Raises:
        LabelError: the template has other targets, a clip twice, or a clip that is not available; names the first five.
    """
    _, wanted = _read_template(template, names, ids)
    refuse_problems(
        problem([name for name, i in wanted if i is None], f"of its {len(wanted)} clips are not among the media"),
        template,
    )
    return sorted(i for _, i in wanted if i is not None)


def has_values(labels_or_template: StrPath, form: LabelFormat | None = None) -> bool:
    """Return whether a CSV has a value for any target, so that predictions can be scored against it.

    Args:
        labels_or_template: CSV with Filename.
        form: how it is to be read.

    Raises:
        LabelError: the file is wrong.
    """
    sheet = _read_reference(labels_or_template, form or LabelFormat())
    column = sheet.header.index(FILENAME)
    return any(not is_missing(cell) for cells in sheet.rows for i, cell in enumerate(cells) if i != column)


def _read_as_written(path: StrPath) -> Table:
    """Read a CSV whose cells are not stripped; empty rows are left out."""
    place = Path(path)
    if not place.is_file():
        raise LabelError(f"there is no file at {place}")
    with place.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            header: list[str] = next(reader, [])
            numbered = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
        except UnicodeDecodeError as error:
            raise LabelError(f"{place} is not in UTF-8 ({error.reason}); save it as CSV in UTF-8") from error
        except csv.Error as error:
            raise LabelError(f"{place}, line {reader.line_num}: no CSV ({error}); does a quote never end?") from error
    return Table(str(place), tuple(header), [cells for _, cells in numbered], [line for line, _ in numbered], ",")


def _filenames(sheet: Table) -> list[str]:
    """Return the Filename cells of the rows that are long enough to have one."""
    column = sheet.header.index(FILENAME)
    return [cells[column] for cells in sheet.rows if len(cells) > column]


def _read_reference(path: StrPath, form: LabelFormat | None = None) -> Table:
    """Read the columns of a label file or template that belong to a submission: Filename and the targets, in order."""
    table = label_table(path)
    columns = choose_columns(table, form or LabelFormat())
    kept = sorted({columns.filename, *columns.targets})
    rows = [[cells[i] for i in kept] for cells in table.rows]
    return replace(table, header=tuple(table.header[i] for i in kept), rows=rows)


def _clip_problems(given: list[str], wanted: list[str]) -> list[str]:
    names = [name.strip() for name in given]
    found = find_ids(names, dict.fromkeys(wanted))
    known = [(name, clip) for name, clip in zip(given, found, strict=True) if clip is not None]
    present = {clip for _, clip in known}
    problems = [
        *problem([name for name in dict.fromkeys(wanted) if name not in present], "clips are missing"),
        *problem([n for n, clip in zip(given, found, strict=True) if clip is None], "clips are not asked for"),
        *problem(repeated([clip_id(c or n) for n, c in zip(names, found, strict=True)]), "clips stand twice or more"),
        *problem([f"{a!r} for {b!r}" for a, b in known if a != b], "Filenames are written otherwise"),
    ]
    expected = [name for name in dict.fromkeys(wanted) if name in present]
    order = list(dict.fromkeys(clip for _, clip in known))
    ascending = sorted(expected, key=int) if _are_integers(expected) else expected
    if order not in (expected, ascending):
        nearer = ascending if order[0] == ascending[0] else expected
        moved = [f"{a} where {b} belongs" for a, b in zip(order, nearer, strict=True) if a != b]
        problems += problem(moved, "rows are out of order")
    return problems


def _values_of(sheet: Table) -> list[tuple[str, str]]:
    """Return the cells of the targets, each with its clip and target."""
    column = sheet.header.index(FILENAME)
    return [
        (f"{cells[column] if len(cells) > column else '?'} {name}", cell)
        for cells in sheet.rows
        for name, cell in zip(sheet.header, cells, strict=False)
        if name != FILENAME
    ]


def value_problems(cells: Iterable[tuple[str, str]], bounds: Range) -> list[str]:
    """Return a sentence for cells that are no numbers, one for those not finite, and one for those out of bounds.

    Args:
        cells: as written, each with the name of its place.
        bounds: of the values.
    """
    strange, infinite, outside = [], [], []
    for place, cell in cells:
        try:
            value = float(cell)
        except ValueError:
            strange.append(f"{place}: {cell!r}")
            continue
        if not math.isfinite(value):
            infinite.append(f"{place}: {cell}")
        elif not bounds[0] <= value <= bounds[1]:
            outside.append(f"{place}: {cell}")
    return [
        *problem(strange, "values are no numbers"),
        *problem(infinite, "values are not finite"),
        *problem(outside, f"values are outside {bounds[0]:g} to {bounds[1]:g}"),
    ]


def _as_template(
    template: StrPath, ids: Sequence[str], names: Sequence[str]
) -> tuple[list[int], list[tuple[str, int]]]:
    """Return the columns in the template's order, and its Filenames with the rows of the predictions."""
    columns, wanted = _read_template(template, names, ids)
    rows = [(name, i) for name, i in wanted if i is not None]
    problems = [
        *problem([name for name, i in wanted if i is None], "clips were not predicted"),
        *problem(
            [ids[i] for i in sorted(set(range(len(ids))) - {i for _, i in rows})], "predicted clips are not in it"
        ),
    ]
    refuse_problems(problems, template)
    return columns, rows


def _read_template(
    template: StrPath, names: Sequence[str], ids: Sequence[str]
) -> tuple[list[int], list[tuple[str, int | None]]]:
    """Return the targets in the template's order, as indices; and its Filenames, each with the index of its clip."""
    sheet = _read_reference(template)
    targets = [name for name in sheet.header if name != FILENAME] or list(names)
    if sorted(targets) != sorted(names):
        raise LabelError(f"{sheet.path} has the targets {', '.join(targets)}, and the run predicts {', '.join(names)}")
    filenames, index = _filenames(sheet), {clip: i for i, clip in enumerate(ids)}
    found = find_ids(filenames, ids)
    twice = repeated([clip or name for name, clip in zip(filenames, found, strict=True)])
    refuse_problems(problem(twice, "clips stand twice"), sheet.path)
    rows = [None if clip is None else index[clip] for clip in found]
    return [list(names).index(name) for name in targets], list(zip(filenames, rows, strict=True))


def _are_integers(names: Iterable[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that stand twice or more."""
    return [name for name, times in Counter(names).items() if times > 1]


def problem(found: Sequence[object], what: str, unit: str = "") -> list[str]:
    """Return no sentence, or one with the count and the first few."""
    first = ", ".join(f"{unit}{item}" for item in found[:SHOWN])
    return [f"{len(found)} {what} (first: {first})"] if found else []


def refuse_problems(problems: Sequence[str], where: StrPath) -> None:
    """Raise a LabelError of what is wrong with a file, if anything is."""
    if problems:
        raise LabelError(f"{where}: {'; '.join(problems)}")
