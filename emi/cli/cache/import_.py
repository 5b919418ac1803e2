"""`emi cache import`: features that others computed into a cache."""

from typing import Annotated

import typer


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

    Example: emi cache import wav2vec2/ wav2vec2.zarr --hop-seconds 0.02
    """
    from cache.exchange.importing import import_features
    from emi.cli.messages import tell_some, tell_written
    from emi.console import MOMENT, Progress
    from extract.failures import Failure, failures_path, write_failures

    with Progress("importing", after=MOMENT) as progress:
        done = import_features(source, cache, name=name, hop_seconds=hop_seconds, dtype=dtype, on_progress=progress)
    failures = [Failure(failure.id, failure.path, failure.reason) for failure in done.failures]
    if failures:
        failures_path(done.cache).parent.mkdir(parents=True, exist_ok=True)
    file = write_failures(done.cache, failures, done.ids)
    if done.written or not failures:
        minutes = f"{done.seconds / 60:.1f} min at {hop_seconds:g} s a frame"
        text = f"wrote {done.written} clips ({minutes}) to {done.cache} in {progress.took:.1f} s"
        tell_written(text, done.written, done.present, f"{done.cache}, and unchanged")
    listed = [f"{failure.path}: {failure.reason}" for failure in failures]
    tell_some(f"{len(failures)} files could not be imported (also in {file})", listed)
    if failures:
        raise typer.Exit(1)
