"""`emi cache remove`: clips of people who withdraw their consent."""

import os
from pathlib import Path
from typing import Annotated

import typer


def remove(
    path: Annotated[str, typer.Argument(metavar="CACHE", help="NAME.zarr or NAME.h5.")],
    ids: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|ID", help="Id of a clip, or a text file with one a line; more may follow, or repeat --ids."
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="FILE|ID", help="More clips.")] = None,
) -> None:
    """Remove clips from a cache, so that their bytes are gone from the disk. The cache is verified first.

    If this is killed, run it again. Ids that the cache does not hold are named: they were removed before, or are
    misspelt; the exit code is 0 then too. Other copies stay: media, exports, caches derived or copied from this one,
    run folders.

    Example: emi cache remove features.zarr --ids withdrawn.txt

    Example: emi cache remove features.h5 --ids 00017 --ids 00018
    """
    from functools import partial

    from cache.ids import find_ids
    from cache.maintenance.remove import remove as run
    from cache.reader import open_cache
    from emi.cli.cache.export import id_lines
    from emi.cli.messages import tell_some
    from emi.console import MOMENT, Progress

    with open_cache(path) as store:
        names: list[str] = []
        for text in [*ids, *(more or [])]:
            names += id_lines(Path(text), store) if text not in store and os.path.isfile(text) else [text]
        wanted = [found or name for name, found in zip(names, find_ids(names, store), strict=True)]
    with Progress(after=MOMENT) as progress:
        done = run(path, wanted, partial(progress.stage, "verifying"), partial(progress.stage, "rewriting"))
    if done.removed:
        typer.echo(f"removed {len(done.removed)} clips from {path}, which holds {done.clips} now:")
        for clip_id in done.removed:
            typer.echo(f"  {clip_id}")
        for place in done.aside:
            typer.echo(f"also from {place}")
        typer.echo(
            "not touched: the media, from which `emi extract` would fill the cache again; exports, caches derived or "
            "copied from this one, and run folders (labels, predictions, weights), which hold what they took from them"
        )
    elif done.changed:
        typer.echo(f"removed what an earlier run had left in {path}, which holds {done.clips} clips")
    else:
        typer.echo(f"nothing to do: {path} holds none of these clips")
    tell_some(f"{len(done.unknown)} ids are not in {path} (removed before, or misspelt)", done.unknown)
