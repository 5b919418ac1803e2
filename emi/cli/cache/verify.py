"""`emi cache verify` and `emi cache repair`: what is damaged, and a cache without it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cache.maintenance.verify import DamagedClip

SHOWN = 20


def verify(
    path: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5.")],
) -> None:
    """Read every byte of a cache, check it, and name the damaged clips. The exit code is 1 where something is wrong.

    Example: emi cache verify features.zarr
    """
    from cache.maintenance.verify import verify as run
    from emi.console import MOMENT, Progress

    with Progress("verifying", after=MOMENT) as progress:
        found = run(path, progress)
    took = progress.took
    typer.echo(
        f"read {found.clips} clips in {found.segments} segments of {path}: {found.bytes / 1e6:.1f} MB of features in "
        f"{took:.1f} s ({found.bytes / 1e9 / took:.2f} GB/s)"
    )
    if found.leftovers[0]:
        typer.echo(
            f"{found.leftovers[0]} segments ({found.leftovers[1] / 1e6:.1f} MB) were never finished, or are being "
            "written; no harm, and `emi cache compact` removes them"
        )
    if found.sound:
        typer.echo("no damage")
        return
    _tell_clips("damaged", [clip for clip in found.damaged if clip.lost])
    _tell_clips("readable, but damaged around", [clip for clip in found.damaged if not clip.lost])
    for segment, reason in found.unreadable.items():
        typer.echo(f"segment {segment} cannot be read: {reason}", err=True)
    for line in (*found.structure, f"mend it with: emi cache repair {path}"):
        typer.echo(line, err=True)
    raise typer.Exit(1)


def repair(
    path: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5.")],
) -> None:
    """Drop the damaged clips of a cache and say which, so that `emi extract` fills them again; sound ones stay.

    Example: emi cache repair features.zarr && emi extract clips/ --cache features.zarr
    """
    from cache.maintenance.rewrite import repair as run
    from emi.console import MOMENT, Progress

    with Progress(after=MOMENT) as progress:
        done = run(path, partial(progress.stage, "verifying"), partial(progress.stage, "rewriting"))
    if not done.changed:
        typer.echo(f"nothing to do: {done.clips} clips, no damage")
        return
    _tell_clips("dropped", done.dropped)
    for segment, reason in done.unreadable.items():
        typer.echo(f"dropped segment {segment}, of which clips may be missing above: {reason}", err=True)
    for problem in done.mended:
        typer.echo(f"mended: {problem}", err=True)
    restored = f", {len(done.restored)} of them written anew" if done.restored else ""
    typer.echo(f"{path} holds {done.clips} sound clips{restored}")
    if done.dropped or done.unreadable:
        typer.echo("run the same `emi extract` again to fill what was dropped")


def _tell_clips(what: str, clips: "Sequence[DamagedClip]") -> None:
    """Name all, but give the reasons of the first only."""
    from emi.cli.messages import tell_some

    lines = [f"{clip.id} ({clip.reason})" for clip in clips]
    rest = f": {' '.join(clip.id for clip in clips[SHOWN:])}"
    tell_some(f"{len(clips)} clips {what}", lines, SHOWN, rest)
