"""`emi cache export`: a cache into the formats of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cache.reader import FeatureCache


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
    """Write the clips of a cache in a format that other tools read, with the settings that they were made with.

    Run it again to resume where it stopped (npz), or to see that there is nothing to do.

    Example: emi cache export features.zarr features.parquet --to parquet
    """
    from cache.exchange.exporting import export as run
    from cache.reader import open_cache
    from emi.cli.messages import tell_written
    from emi.console import MOMENT, Progress

    with open_cache(cache) as store, Progress("exporting", after=MOMENT) as progress:
        done = run(store, out, to, None if ids is None else read_ids(ids, store), progress)
    text = f"wrote {done.written} clips to {done.path} in {progress.took:.1f} s"
    tell_written(text, done.written, done.present, done.path)


def read_ids(file: Path, store: "FeatureCache") -> list[str]:
    """Read clip ids, one a line, as the cache has them or as label files name them (7 is 00007); skip blank lines.

    Raises:
        ExportError: no such file, or it is not UTF-8 text.
        ClipNameError: a line may be several clips, or two lines are one.
    """
    from cache.ids import match_ids

    lines = id_lines(file, store)
    return [found or line for line, found in zip(lines, match_ids(lines, store), strict=True)]


def id_lines(file: Path, store: "FeatureCache") -> list[str]:
    """Read the lines of a file with a clip id each, stripped unless the cache has an id with spaces around it.

    Raises:
        ExportError: no such file, or it is not UTF-8 text.
    """
    from cache.exchange.selection import ExportError

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--ids {file} cannot be read as UTF-8 text ({error}); write one clip id a line") from error
    return [line if line in store else line.strip() for line in text.split("\n") if line.strip()]
