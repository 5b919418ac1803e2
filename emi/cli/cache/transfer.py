"""`emi cache convert` and `emi cache merge`: clips of one or several caches into another."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer

EXAMPLE = "Example: emi cache convert features.zarr features.h5"
MERGE_EXAMPLE = "Example: emi cache merge part1.zarr part2.zarr --out all.zarr"


def convert(
    source: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5.")],
    target: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5 to fill.")],
    dtype: Annotated[
        str | None, typer.Option(help="Storage of the frames: float16 or float32 [default: as in the source].")
    ] = None,
) -> None:
    """Copy a cache into the other container or another dtype. Run it again to resume where it stopped."""
    _transfer([source], target, dtype)


def merge(
    sources: Annotated[list[str], typer.Argument(help="Caches with equal fingerprints.")],
    out: Annotated[str, typer.Option(help="NAME.zarr or NAME.h5 to fill.")],
) -> None:
    """Copy several caches that were made alike into one; of a clip that several hold, the first counts."""
    _transfer(sources, out, None)


def _transfer(sources: Sequence[str], target: str, dtype: str | None) -> None:
    from cache.maintenance.transfer import transfer
    from emi.console import MOMENT, Progress

    started = time.monotonic()
    with Progress(None, "copying", after=MOMENT) as progress:
        done = transfer(sources, target, dtype=dtype, on_progress=progress)
    if not done.written:
        typer.echo(f"nothing to do: all {done.present} clips are in {target}")
        return
    typer.echo(
        f"copied {done.written} clips to {target} in {time.monotonic() - started:.1f} s"
        + (f"; {done.present} were there" if done.present else "")
        + (f"; {done.repeated} are in several sources, and the first counts" if done.repeated else "")
    )
