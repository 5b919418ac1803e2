"""`emi cache compact`: one segment of many."""

import math
from functools import partial
from typing import Annotated

import typer


def compact(
    path: Annotated[str, typer.Argument(help="NAME.zarr or NAME.h5.")],
    segment_gb: Annotated[float, typer.Option(help="Gigabytes of features in one segment at most.")] = 64.0,
) -> None:
    """Join the segments of a cache: fewer files, faster opening. The cache is verified first.

    If this is killed, the cache stays as it was.

    Example: emi cache compact features.zarr
    """
    from cache.errors import CacheError
    from cache.maintenance.rewrite import compact as run
    from emi.console import MOMENT, Progress

    if not 1 <= segment_gb * 1e9 < math.inf:
        raise CacheError(f"--segment-gb takes a number of gigabytes above zero, such as 64, got {segment_gb}")
    with Progress(after=MOMENT) as progress:
        stages = (partial(progress.stage, name) for name in ("verifying", "rewriting"))
        done = run(path, *stages, segment_bytes=int(segment_gb * 1e9))
    before, now = done.segments
    if done.changed:
        typer.echo(f"{path}: {done.clips} clips, {before} segments before and {now} now")
    else:
        typer.echo(f"nothing to do: {done.clips} clips in {now} segments")
