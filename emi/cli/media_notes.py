"""What commands say of the media that they read."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from extract.failures import Note

SHOWN = 5


def tell_notes(notes: "Sequence[Note]", truncated_file: "Path | None" = None) -> None:
    """Say in a line each which audio track was used where there are several, and which files were used in part."""
    several = [note for note in notes if note.track]
    if several:
        counts = Counter(note.track for note in several)
        shown = "; ".join(f"{track}: {count}" for track, count in counts.most_common(SHOWN))
        more = f"; and {len(counts) - SHOWN} other choices" if len(counts) > SHOWN else ""
        files = "1 file has" if len(several) == 1 else f"{len(several)} files have"
        typer.echo(
            f"{files} several audio tracks (first: {several[0].path}). Used: {shown}{more}; --track N takes another",
            err=True,
        )
    cut = [note for note in notes if note.cut_off]
    if cut:
        listed = f" (also in {truncated_file})" if truncated_file else ""
        clips = "1 clip was" if len(cut) == 1 else f"{len(cut)} clips were"
        typer.echo(f"{clips} used although cut off or damaged{listed}:", err=True)
        for note in cut[:SHOWN]:
            typer.echo(f"  {note.path}: {note.cut_off}", err=True)
        if len(cut) > SHOWN:
            typer.echo(f"  … and {len(cut) - SHOWN} more", err=True)


def tell_left_out(counts: Mapping[str, int]) -> None:
    """Say which files of a folder were not taken, by suffix."""
    from extract.sources import in_words

    if counts:
        typer.echo(f"left out: {in_words(counts)}, by their suffixes no media; a text list takes any file", err=True)


def first_of(ids: Collection[str]) -> str:
    """For example "a, b, …"."""
    return ", ".join(list(ids)[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
