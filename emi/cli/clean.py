"""`emi clean`: remove what can be made again."""

from pathlib import Path
from typing import Annotated

import typer


def clean(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Where to look, also below.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files that are listed.")] = False,
) -> None:
    """List what emi can make again and how large it is; with --yes, remove it.

    That is the decoded audio and the crops of fine-tuning (OUT-audio, OUT-crops), the crops, tables, sheet and
    failures.csv of `emi faces`, and last.pt of finished runs, from which nothing is resumed any more. Media, caches,
    predictions, the best weights and all other files stay.

    Example: emi clean runs/ artifacts/faces --yes
    """
    from cache.paths import readable
    from emi.cleaning import find_removable

    found = {one.files: one for one in find_removable(folders)}.values()  # folders may lie within each other
    sizes = [one.bytes for one in found]
    for one, size in zip(found, sizes, strict=True):
        typer.echo(f"{readable(str(one.folder))}: {one.what}: {_size(size)}")
    if not found:
        typer.echo("nothing to do: no decoded audio, crops of faces or states of finished runs here")
    elif not yes:
        typer.echo(f"in all {_size(sum(sizes))}; nothing was removed: --yes removes these files")
    else:
        for one in found:
            one.remove()
        typer.echo(f"removed {_size(sum(sizes))}")


def _size(number: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1000:.0f} kB"
