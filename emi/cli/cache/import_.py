"""`emi cache import`: features that others computed into a cache."""

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cache.exchange.importing import ImportSummary

EXAMPLE = "Example: emi cache import wav2vec2/ wav2vec2.zarr --hop-seconds 0.02"
FAILURES_SHOWN = 20


def import_(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder with one (frames, dim) array per clip: .pkl, .npy or .npz.")
    ],
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="Feature cache to fill: NAME.zarr or NAME.h5.")],
    hop_seconds: Annotated[
        float, typer.Option(help="Time from one frame to the next: 0.02 at 50 frames a second, 0.1667 at 6.")
    ] = 0.02,
    name: Annotated[str | None, typer.Option(help="What made the features [default: the folder's name].")] = None,
    dtype: Annotated[str, typer.Option(help="Storage of the frames: float16 or float32.")] = "float16",
) -> None:
    """Fill a cache with features that others computed, such as those that come with Hume-Vidmimic2.

    Pickles are read without running anything in them. Run it again to resume where it stopped; files that have changed
    since are refused. Files that cannot be read are listed in failures.csv beside the cache, the others are imported,
    and the exit code is 1.
    """
    from cache.exchange.importing import import_features
    from emi.console import Stages

    started = time.monotonic()
    with Stages() as stages:
        summary = import_features(
            source, cache, name=name, hop_seconds=hop_seconds, dtype=dtype, on_progress=partial(stages, "importing")
        )
    _show_summary(summary, time.monotonic() - started, hop_seconds)
    if summary.failures:
        raise typer.Exit(1)


def _show_summary(summary: "ImportSummary", elapsed: float, hop_seconds: float) -> None:
    from extract.failures import Failure, failures_path, write_failures

    failures = [Failure(failure.id, failure.path, failure.reason) for failure in summary.failures]
    if failures:
        failures_path(summary.cache).parent.mkdir(parents=True, exist_ok=True)
    file = write_failures(summary.cache, failures, summary.ids)
    if summary.written:
        typer.echo(
            f"wrote {summary.written} clips ({summary.seconds / 60:.1f} min at {hop_seconds:g} s a frame) to "
            f"{summary.cache} in {elapsed:.1f} s" + (f"; {summary.present} were there" if summary.present else "")
        )
    elif not failures:
        typer.echo(f"nothing to do: all {summary.present} clips are in {summary.cache}, and unchanged")
    if failures:
        typer.echo(f"{len(failures)} files could not be imported (also in {file}):", err=True)
        for failure in failures[:FAILURES_SHOWN]:
            typer.echo(f"  {failure.path}: {failure.reason}", err=True)
        if len(failures) > FAILURES_SHOWN:
            typer.echo(f"  … and {len(failures) - FAILURES_SHOWN} more", err=True)
