"""`emi cache derive`: a small cache made from a large one."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cache.derive.derived import DeriveSummary

EXAMPLE = "Example: emi cache derive features.zarr small.zarr --pool 5 --pca 128 --standardise --train train_split.csv"


def derive(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Cache of extracted features: NAME.zarr or NAME.h5.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Cache to fill: NAME.zarr or NAME.h5.")],
    pool: Annotated[int, typer.Option(help="Make this many consecutive frames one, their mean.")] = 1,
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
    """Make a small cache from a large one, for fast sweeps on a CPU. Run it again to resume where it stopped."""
    from cache.derive.derived import derive as run
    from emi.console import Stages
    from train_head.data.labels import read_clips

    train_ids = None if train is None else read_clips(train, repeated=True).filenames
    started = time.monotonic()
    with Stages() as stages:
        summary = run(
            source,
            target,
            pool=pool,
            pca=pca,
            standardise=standardise,
            dtype=dtype,
            train_ids=train_ids,
            skip_missing=skip_missing,
            on_progress=stages,
        )
    _show_summary(summary, time.monotonic() - started)


def _show_summary(summary: "DeriveSummary", elapsed: float) -> None:
    from cache.derive.derived import describe

    if summary.missing:
        typer.echo(f"{summary.missing} training clips were left out because the cache does not hold them", err=True)
    if not summary.written:
        typer.echo(f"nothing to do: all {summary.present} clips are in {summary.cache}")
        return
    there = f"; {summary.present} were there" if summary.present else ""
    header = summary.header
    typer.echo(
        f"wrote {summary.written} clips to {summary.cache} in {elapsed:.1f} s{there}\n"
        f"{describe(header.fingerprint['derived'])}\n"
        f"{header.dim} features every {1000 * header.hop_seconds:g} ms, stored as {header.fingerprint['dtype']}"
    )
