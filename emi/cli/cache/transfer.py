"""`emi cache convert` and `emi cache merge`: clips of one or several caches into another."""

from collections.abc import Sequence
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="Cache to copy: NAME.zarr or NAME.h5.")],
    target: Annotated[str, typer.Argument(help="Cache to fill: NAME.zarr or NAME.h5.")],
    dtype: Annotated[
        str | None, typer.Option(help="Storage of the frames: float16 or float32 [default: as in the source].")
    ] = None,
) -> None:
    """Copy a cache into the other container or another dtype. Run it again to resume where it stopped.

    Example: emi cache convert features.zarr features.h5
    """
    _transfer([source], target, dtype)


def merge(
    sources: Annotated[list[str], typer.Argument(help="Caches with equal fingerprints.")],
    out: Annotated[str, typer.Option(help="Cache to fill: NAME.zarr or NAME.h5.")],
) -> None:
    """Copy several caches that were made alike into one; of a clip that several hold, the first counts.

    Run it again to resume where it stopped.

    Example: emi cache merge part1.zarr part2.zarr --out all.zarr
    """
    _transfer(sources, out, None)


def _transfer(sources: Sequence[str], target: str, dtype: str | None) -> None:
    from cache.maintenance.transfer import transfer
    from emi.cli.messages import tell_written
    from emi.console import MOMENT, Progress

    with Progress("copying", after=MOMENT) as progress:
        done = transfer(sources, target, dtype=dtype, on_progress=progress)
    repeated = f"; {done.repeated} are in several sources, and the first counts" if done.repeated else ""
    text = f"copied {done.written} clips to {target} in {progress.took:.1f} s"
    tell_written(text, done.written, done.present, target, repeated)
