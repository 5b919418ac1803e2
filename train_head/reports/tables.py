"""Figures as text: the same number of digits everywhere, and tables for the terminal and for Markdown."""

from collections.abc import Sequence

OVER_TARGETS = "mean over targets"
"""Name of a row or column that averages the targets; other means are named after what they average."""


def cell(value: float | None, sign: str = "", undefined: str = "undef") -> str:
    """Return three digits, or a word for a missing number."""
    return undefined if value is None else f"{value:{sign}.3f}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their longest cell, the first aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            f"{text:<{width}}" if k == 0 else f"{text:>{width}}"
            for k, (text, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join(map(line, lines))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same in Markdown; a `|` in a cell does not end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)
