"""`emi cache export`: a cache into the formats of other tools."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cache.reader import FeatureCache

EXAMPLE = "Example: emi cache export features.zarr features.parquet --to parquet"


def export(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="NAME.zarr or NAME.h5.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to make; with --to parquet, a file.")],
    to: Annotated[
        str,
        typer.Option(
            help="npz (a file per clip), npy (arrays to map into memory), parquet, or datasets (Hugging Face)."
        ),
    ],
    ids: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file with one clip id a line [default: all clips].")
    ] = None,
) -> None:
    """Write the clips of a cache in a format that other tools read, with what they were made from.

    Run it again to resume where it stopped (npz), or to hear that there is nothing to do.
    """
    from cache.exchange.exporting import export as run
    from cache.reader import open_cache
    from emi.console import Stages

    started = time.monotonic()
    with open_cache(cache) as store, Stages() as stages:
        wanted = None if ids is None else read_ids(ids, store)
        summary = run(store, out, to, wanted, partial(stages, "exporting"))
    if not summary.written:
        typer.echo(f"nothing to do: all {summary.present} clips are in {summary.path}")
        return
    typer.echo(
        f"wrote {summary.written} clips to {summary.path} in {time.monotonic() - started:.1f} s"
        + (f"; {summary.present} were there" if summary.present else "")
    )


def read_ids(file: Path, store: "FeatureCache") -> list[str]:
    """Clip ids, one a line, as the cache has them or as label files name them (7 is 00007); blank lines are skipped.

    Raises:
        ExportError: no such file, or it is not UTF-8 text.
        ClipNameError: a line may be several clips, or two lines are one.
    """
    from cache.exchange.selection import ExportError
    from cache.ids import match_ids

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--ids {file} cannot be read as UTF-8 text ({error}); write one clip id a line") from error
    lines = [line if line in store else line.strip() for line in text.split("\n") if line.strip()]
    return [found or line for line, found in zip(lines, match_ids(lines, store), strict=True)]
