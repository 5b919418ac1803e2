"""Text that several reports share: figures with equal digits, tables, CSV, and a sentence on the licence."""

import csv
import io
from collections.abc import Iterable, Sequence

from cache.licences import Licence

OVER_TARGETS = "mean over targets"
"""Name of a row or column that averages the targets; other means are named after what they average."""


def cell(value: float | None, sign: str = "", undefined: str = "undef") -> str:
    """Return three digits, or a word for a missing number.

    Args:
        value: the number; None where it is undefined.
        sign: "+" to show the sign of positive numbers too.
        undefined: the word for None.
    """
    return undefined if value is None else f"{value:{sign}.3f}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their longest cell, the first aligned left, the others right.

    Args:
        header: names of the columns.
        rows: cells of each row.
    """
    lines = [header, *rows]
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[f"{line[0]:<{first}}", *map(str.rjust, line[1:], others)] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same table in Markdown; a `|` in a cell does not end it.

    Args:
        header: names of the columns.
        rows: cells of each row.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as the text of a CSV file; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def licence_line(backbone: str, licence: Licence) -> str:
    """Return a sentence on whether products of a backbone may be used commercially.

    Args:
        backbone: its name.
        licence: of its weights.
    """
    return (
        f"The weights of `{backbone}`: {licence}. Their licence applies to what is made with them, this head and its "
        "predictions among it."
    )
