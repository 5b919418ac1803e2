"""`emi cache derive`: a small cache made from a large one."""

from pathlib import Path
from typing import Annotated

import typer


def derive(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Cache of extracted features: NAME.zarr or NAME.h5.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Cache to fill: NAME.zarr or NAME.h5.")],
    pool: Annotated[int, typer.Option(help="Replace this many consecutive frames by one: their mean.")] = 1,
    pool_stats: Annotated[
        str, typer.Option(metavar="mean,std", help="What is taken of them: mean, std, or both side by side.")
    ] = "mean",
    pca: Annotated[
        int | None, typer.Option(help="Project on this many principal components [default: all features].")
    ] = None,
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Bring every feature to zero mean and unit variance.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Storage of the frames: float16 or float32.")] = "float16",
    train: Annotated[
        Path | None, typer.Option(help="Label CSV of the clips that --pca and --standardise are fitted on.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Fit without training clips that SRC does not hold.")
    ] = False,
) -> None:
    """Make a small cache from a large one, for fast sweeps on a CPU. Run it again to resume where it stopped.

    Example: emi cache derive features.zarr small.zarr --pool 5 --pca 128 --standardise --train train_split.csv
    """
    from cache.derive import derived
    from emi.cli.messages import row_clock, tell_written
    from emi.console import MOMENT, Progress
    from train_head.data.labels import read_clips

    train_ids = None if train is None else read_clips(train, repeated=True).filenames
    with Progress(after=MOMENT) as progress:
        summary = derived.derive(
            source,
            target,
            pool=pool,
            pool_stats=[name.strip() for name in pool_stats.split(",")],
            pca=pca,
            standardise=standardise,
            dtype=dtype,
            train_ids=train_ids,
            skip_missing=skip_missing,
            on_progress=progress.stage,
        )
    if summary.missing:
        typer.echo(f"{summary.missing} training clips were left out because the cache does not hold them", err=True)
    header, made = summary.header, summary.header.fingerprint
    tell_written(
        f"wrote {summary.written} clips to {summary.cache} in {progress.took:.1f} s",
        summary.written,
        summary.present,
        summary.cache,
        f"\n{derived.describe(made['derived'])}\n"
        f"{header.dim} features {row_clock(header.hop_seconds)}, stored as {made['dtype']}",
    )
