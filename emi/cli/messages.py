"""Sentences that several commands print: about media, licences, what was written, and what could not be."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from cache.licences import Licence
    from extract.failures import Note

SHOWN = 5


def tell_some(heading: str, lines: Sequence[str], shown: int = 20, rest: str = "") -> None:
    """Print a heading and the first lines to the standard error; nothing where there are no lines.

    Args:
        heading: without the colon behind it.
        lines: one per clip.
        shown: the number of lines to print.
        rest: printed behind the number of the others.
    """
    if lines:
        more = [f"… and {len(lines) - shown} more{rest}"] if len(lines) > shown else []
        typer.echo("\n  ".join([f"{heading}:", *lines[:shown], *more]), err=True)


def tell_written(done: str, written: int, present: int, place: str, more: str = "") -> None:
    """Print what was written, and how many clips were there before; or that there was nothing to do."""
    there = f"; {present} were there" if present else ""
    typer.echo(f"{done}{there}{more}" if written else f"nothing to do: all {present} clips are in {place}")


def tell_notes(notes: "Sequence[Note]", truncated_file: Path | None = None) -> None:
    """Print which audio tracks were used where files have several, which files were used in part, and other remarks."""
    notes = list(dict.fromkeys(notes))  # one may be in several lists
    several = [note for note in notes if note.track]
    if several:
        counts = Counter(note.track for note in several)
        used = "; ".join(f"{track}: {count}" for track, count in counts.most_common(SHOWN))
        more = f"; and {len(counts) - SHOWN} other choices" if len(counts) > SHOWN else ""
        files = "1 file has" if len(several) == 1 else f"{len(several)} files have"
        typer.echo(
            f"{files} several audio tracks (first: {several[0].path}). Used: {used}{more}; --track N takes another",
            err=True,
        )
    cut = [f"{note.path}: {note.cut_off}" for note in notes if note.cut_off]
    listed = f" (also in {truncated_file})" if truncated_file else ""
    clips = "1 clip was" if len(cut) == 1 else f"{len(cut)} clips were"
    tell_some(f"{clips} used although cut off or damaged{listed}", cut, SHOWN)
    remarks = [f"{note.path}: {note.remark}" for note in notes if note.remark]
    tell_some(f"to know of {'1 clip' if len(remarks) == 1 else f'{len(remarks)} clips'}", remarks, SHOWN)


def tell_missing(notes: "Sequence[Note]") -> None:
    """Print which clips have rows in which nothing was found, as without a face."""
    nowhere = [note.id for note in notes if note.missing == 1]
    partly = sorted((note for note in notes if note.missing < 1), key=lambda note: -note.missing)
    if nowhere:
        clips = "1 clip" if len(nowhere) == 1 else f"{len(nowhere)} clips"
        typer.echo(f"nothing was found (as no face) in any row of {clips}: {first_of(nowhere)}", err=True)
    if partly:
        clips = "1 clip" if len(partly) == 1 else f"{len(partly)} clips"
        most = ", ".join(f"{note.id} {100 * note.missing:.0f} %" for note in partly[:SHOWN])
        typer.echo(f"nothing was found in some rows of {clips}: {most}{', …' * (len(partly) > SHOWN)}", err=True)


def tell_others(notes: "Sequence[Note]", face: str) -> None:
    """Print how many clips show other people too, and which face was taken.

    Args:
        notes: of the clips.
        face: how it was chosen, see `extract.faces.options.TrackingSettings`.
    """
    if notes:
        clips = "1 clip shows" if len(notes) == 1 else f"{len(notes)} clips show"
        ids = first_of([note.id for note in notes])
        typer.echo(f"{clips} other people too: {ids}; the face was taken that --face {face} names", err=True)


def tell_left_out(counts: Mapping[str, int]) -> None:
    """Print how many files of a folder were left out, by suffix."""
    from extract.sources import in_words

    if counts:
        typer.echo(f"left out: {in_words(counts)}, by their suffixes no media; a text list takes any file", err=True)


def row_clock(hop_seconds: float | None) -> str:
    """Say when frames of a cache are."""
    return "with times of their own" if hop_seconds is None else f"every {1000 * hop_seconds:g} ms"


def first_of(ids: Collection[str]) -> str:
    """Return the first ids as a text such as "a, b, …"."""
    return ", ".join(list(ids)[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def tell_licence(backbone: str) -> None:
    """Print that a backbone's weights may not be used commercially, as far as is known without a download."""
    from extract.backbones.licence import licence_of_weights

    _tell(backbone, licence_of_weights(backbone))


def tell_licence_of_run(folder: Path) -> None:
    """Print the same about the backbone that a run was made with.

    Raises:
        RunFolderError: the folder is no run.
    """
    from cache.licences import licence_of_run
    from train_head.runs.run_folder import read_config_file

    _tell(str(folder), licence_of_run(read_config_file(folder)))


def _tell(name: str, licence: "Licence") -> None:
    if licence.commercial_use == "no":
        typer.echo(
            f"{name}: {licence}; features, heads and predictions that are made with these weights are bound by it",
            err=True,
        )
