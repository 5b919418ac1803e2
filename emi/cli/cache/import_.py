"""`emi cache import`: features that others computed into a cache."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cache.exchange.importing import ImportSummary


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder with a file for each clip: a (frames, dim) array as .pkl, .npy or .npz, or a .csv as "
            "openSMILE, OpenFace or py-feat writes it.",
        ),
    ],
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="Feature cache to fill: NAME.zarr or NAME.h5.")],
    hop: Annotated[
        float | None,
        typer.Option(
            "--hop",
            "--hop-seconds",
            metavar="SECONDS",
            help="Time from one frame to the next: 0.02 at 50 frames a second, 0.1667 at 6; not used where files have "
            "times [default: 0.02].",
        ),
    ] = None,
    modality: Annotated[
        str, typer.Option(metavar="NAME", help="What the features were made from: audio, face, text or another name.")
    ] = "audio",
    valid: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER|nonzero",
            help="Frames in which something was found: the array of .npz files; for others a folder with a boolean "
            ".npy for each clip; nonzero: all frames that are not all zero [default: the array valid, where .npz files "
            "have it].",
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Features of CSVs, by their names [default: all].")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What made the features [default: the folder's name].")] = None,
    dtype: Annotated[str, typer.Option(help="Storage of the frames: float16 or float32.")] = "float16",
) -> None:
    """Fill a cache with features that others computed, such as those that come with Hume-Vidmimic2.

    Pickles are read without running anything in them. Run it again to resume where it stopped; files that have changed
    since are refused. Files that cannot be read are listed in failures.csv beside the cache, the others are imported,
    and the exit code is 1.

    Example: emi cache import wav2vec2/ wav2vec2.zarr --hop 0.02

    Example: emi cache import vit/ vit.zarr --hop 0.1667 --modality face --valid nonzero

    Example: emi cache import openface/ openface.zarr --modality face --columns '^AU.*_r$'
    """
    from cache.exchange.importing import import_features
    from emi.console import MOMENT, Progress

    with Progress("importing", after=MOMENT) as progress:
        done = import_features(
            source,
            cache,
            name=name,
            hop_seconds=hop,
            dtype=dtype,
            modality=modality,
            valid=valid,
            columns=columns,
            on_progress=progress,
        )
    _tell(done, progress.took)
    if done.failures:
        raise typer.Exit(1)


def _tell(done: "ImportSummary", took: float) -> None:
    """Print what was imported, and list the failures; `took` in seconds."""
    from emi.cli.messages import row_clock, tell_some, tell_written
    from extract.failures import Failure, failures_path, write_failures

    failures = [Failure(failure.id, failure.path, failure.reason) for failure in done.failures]
    if failures:
        failures_path(done.cache).parent.mkdir(parents=True, exist_ok=True)
    file = write_failures(done.cache, failures, done.ids)
    if done.written or not failures:
        minutes = f"{done.seconds / 60:.1f} min, frames {row_clock(done.hop_seconds)}"
        text = f"wrote {done.written} clips ({minutes}) to {done.cache} in {took:.1f} s"
        tell_written(text, done.written, done.present, f"{done.cache}, and unchanged")
    if done.empty:
        typer.echo(f"{done.empty} clips have no frames: nothing was found in them, and each is one frame that says so")
    faces = [f"{clip_id}: {number} people" for clip_id, number in done.several_faces.items()]
    tell_some(f"{len(faces)} clips show several people; the one who is found in most frames was taken", faces)
    listed = [f"{failure.path}: {failure.reason}" for failure in failures]
    tell_some(f"{len(failures)} files could not be imported (also in {file})", listed)
