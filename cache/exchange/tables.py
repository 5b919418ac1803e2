"""Read tables of text as people save them: cells between `,`, `;` or tabs, in UTF-8 or UTF-16."""

import codecs
import contextlib
import csv
import io
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cache.errors import TableError

FILENAME = "Filename"
"""The column that names the clips; it may be written in any case."""
DELIMITERS = (",", ";", "\t")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_EXCELS_FIRST_LINE = re.compile(r'[\r\n]* *"?sep=([^\r\n])"? *(?=[\r\n]|\Z)', re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A table with a header; cells are stripped, and empty rows are left out.

    Attributes:
        path: the file.
        header: names of the columns, with the one of the clips as `Filename` however it is written.
        rows: (rows)(cells) as text; a row may have fewer or more cells than the header.
        lines: the line in which each row ends, from 1.
        delimiter: what stands between cells.
    """

    path: str
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    delimiter: str

    def where(self, row: int) -> str:
        """`labels.csv, line 3`, for errors."""
        return f"{self.path}, line {self.lines[row]}"

    def check_cells(self) -> None:
        """Refuse rows that do not have the header's number of cells.

        Raises:
            TableError: names the first such row, and how to mend decimal commas.
        """
        for i, cells in enumerate(self.rows):
            if len(cells) != len(self.header):
                decimal = self.delimiter == "," and len(cells) == 2 * len(self.header) - 1
                hint = "; are these decimal commas? Write decimal points, or separate the cells by ;" if decimal else ""
                raise TableError(f"{self.where(i)}: {len(cells)} cells, and the header has {len(self.header)}{hint}")


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table; the delimiter is the one that makes `Filename` a cell of the header, else a comma.

    Args:
        path: a file in UTF-8, or in UTF-16 with a byte-order mark. A first line such as `sep=;` gives the delimiter.

    Raises:
        FileNotFoundError: there is no such file.
        TableError: another encoding, or no CSV; says where.
    """
    place = Path(path)
    text = _decode(place)
    said = _EXCELS_FIRST_LINE.match(text)
    delimiter = said[1] if said else _delimiter(text)
    rows = list(_parse(place, text, delimiter))[1 if said else 0 :]
    return Table(
        path=str(place),
        header=_named(rows[0][1] if rows else []),
        rows=[cells for _, cells in rows[1:]],
        lines=[line for line, _ in rows[1:]],
        delimiter=delimiter,
    )


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Read a table of any columns row by row; the delimiter is the one that the first line has most of.

    Yields:
        The line in which a row ends, from 1, and its cells, stripped; empty rows are left out, the header is not.

    Raises:
        FileNotFoundError: there is no such file.
        TableError: another encoding, or no CSV; says where.
    """
    place = Path(path)
    text = _decode(place)
    said = _EXCELS_FIRST_LINE.match(text)
    delimiter = said[1] if said else max(DELIMITERS, key=text.lstrip().partition("\n")[0].count)
    yield from itertools.islice(_parse(place, text, delimiter), 1 if said else 0, None)


def _decode(place: Path) -> str:
    raw = place.read_bytes()
    mark, encoding = next(((mark, name) for mark, name in _BOMS if raw.startswith(mark)), (b"", "utf-8"))
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        wanted = "UTF-8" if encoding == "utf-8" else f"{encoding.upper()}, as its first bytes say"
        raise TableError(f"{place} is not in {wanted} ({error.reason}); save it as CSV in UTF-8") from error
    if "\0" in text:
        raise TableError(f"{place} is not in UTF-8 (it holds NUL characters); save it as CSV in UTF-8")
    return text


def _delimiter(text: str) -> str:
    """The first that cuts a cell called Filename out of the header."""
    for delimiter in DELIMITERS:
        with contextlib.suppress(csv.Error):  # met again, and told, when the rows are read
            header = next((c for c in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(c)), [])
            if any(map(_is_filename, header)):
                return delimiter
    return DELIMITERS[0]


def _parse(place: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield rows.line_num, cells
    except csv.Error as error:
        raise TableError(f"{place}, line {rows.line_num}: no CSV ({error}); does a quote never end?") from error


def _named(header: list[str]) -> tuple[str, ...]:
    """The header with `Filename` in its one spelling, where exactly one column is called so."""
    names = [FILENAME if _is_filename(name) else name for name in header]
    return tuple(header if FILENAME in header or names.count(FILENAME) > 1 else names)


def _is_filename(cell: str) -> bool:
    return cell.strip().casefold() == FILENAME.casefold()
