"""`emi predict`: intensities of media with a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emi.cli import options
from emi.cli.messages import tell_left_out, tell_licence_of_run, tell_notes, tell_some
from extract.settings import ExtractSettings
from train_head.training.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from emi.prediction import ClipRows, Model, Record
    from emi.prediction_log import PredictionLog
    from extract.failures import Failure
    from extract.sources import Source


@options.takes(
    (ExtractSettings, "device media_root track allow_truncated videos"),
    (TrainSettings, "label_fps"),
    allow_truncated="Use files that are cut off or damaged as far as they decode [default: off].",
    label_fps="Rows per second in the files of --out [default: as the run says].",
)
def predict(
    media: Annotated[list[str], typer.Argument(help="Media files, folders, CSVs or text lists.")],
    model: Annotated[Path, typer.Option(help="Run folder.")],
    *,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write here instead of to the screen.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of a run that predicts every frame: folder that gets a file per clip.")
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            help="Write a challenge's file: integer Filenames without padding, sorted, values within 0 to 1. "
            "Of frames: the rows of --template, beside --out."
        ),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="CSV whose clips are predicted, and whose row order the --submission takes.")
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PLACE",
            help="Where the backbone is now, if it was moved; repeat it with the name of each stream where there are "
            "several [default: as the run says].",
        ),
    ] = None,
    given: options.Given,
) -> None:
    """Predict intensities; the columns are the targets the run was trained on.

    With --template only its clips are predicted. A --submission is written whole or not at all. Clips that could not be
    predicted have empty cells in the --csv file, and are listed in failures.csv beside it. A run that was trained on
    labels per frame writes a file per clip, in the layout of Aff-Wild2's labels, into the folder --out. Run it again to
    resume where it stopped; after failures, only those are predicted again.

    Example: emi predict clips/ --model runs/paper --submission predictions.csv --template test_split.csv
    """
    from emi.cli.submission import write_rows_of
    from emi.media_sources import list_sources
    from emi.prediction import load
    from emi.prediction_log import model_digest
    from extract.faces.image_times import with_videos
    from extract.settings import DecodeOptions

    _check(csv_file, submission, template, out)
    tell_licence_of_run(model)
    media_root, videos = given.pop("media_root", None), given.pop("videos", None)
    options = DecodeOptions(**{name: given.pop(name) for name in ("track", "allow_truncated") if name in given})
    loaded = load(model, backbone=_places(backbone), options=options, **given)
    _check_kind(loaded, csv_file, submission, out, template, videos)
    sources = list_sources(media, media_root, images=loaded.takes_images)
    if videos is not None:
        sources = with_videos(sources, videos)
    made_with = f"{model_digest(model)} {options}"
    if out is None:
        _write_clips(loaded, media, sources, csv_file, submission, template, made_with)
        return
    if template is not None:
        sources = _named_in(template, sources)
    _write_rows(loaded, media, sources, out, f"{made_with} {given.get('label_fps')}")
    if submission is not None and template is not None:
        write_rows_of(template, out, submission, loaded.label_range)


def _check(csv_file: Path | None, submission: Path | None, template: Path | None, out: Path | None) -> None:
    """Refuse outputs that cannot be written or do not go together."""
    from emi.console import check_writable
    from train_head.errors import LabelError, refuse

    refuse(
        (template and not submission, "--template is for --submission FILE; leave it out, or name that file"),
        (template and not template.is_file(), f"there is no template at {template}"),
        (
            out and out.exists() and not out.is_dir(),
            f"--out {out} is a file; name a folder for a file per clip",
        ),
        error=LabelError,
    )
    check_writable(csv_file, submission)


def _check_kind(
    model: "Model",
    csv_file: Path | None,
    submission: Path | None,
    out: Path | None,
    template: Path | None,
    videos: Path | None,
) -> None:
    """Refuse outputs that the run's kind of prediction does not have, and videos that it does not need."""
    from train_head.errors import RunFolderError, refuse

    refuse(
        (
            model.by_frame and (out is None or csv_file is not None),
            "this run predicts every frame, which a table of clips cannot hold; give --out FOLDER alone, which gets a "
            "file per clip",
        ),
        (
            model.by_frame and submission is not None and template is None,
            "the rows of a --submission of frames are those of --template, the organisers' example; name it",
        ),
        (out and not model.by_frame, "this run predicts a value per clip; give --csv FILE instead of --out"),
        (
            videos is not None and not model.takes_videos,
            "--videos is for folders of images, for runs that also read sound, or faces of every frame; leave it out",
        ),
        error=RunFolderError,
    )


def _write_clips(
    model: "Model",
    media: "Sequence[str]",
    sources: "Sequence[Source]",
    csv_file: Path | None,
    submission: Path | None,
    template: Path | None,
    made_with: str,
) -> None:
    """Write a table with a row per clip, a challenge's file, or both; without either, print the table.

    Raises:
        Exit: clips could not be predicted.
    """
    from emi.prediction_log import PredictionLog
    from extract.failures import write_failures
    from train_head.evaluation.submission import template_clips

    if template is not None:
        sources = [sources[i] for i in template_clips(template, model.names, [source.id for source in sources])]
    log = PredictionLog(csv_file or submission, made_with, sources)
    before = frozenset(log.records)
    with log:
        failures = _predict_all(model, media, sources, log, model.iterate_sources, log.add)
    if csv_file is not None:
        write_failures(str(csv_file), [*failures, *model.stream_failures], {s.id for s in sources} - before)
    if csv_file or submission is None:
        _write_csv(csv_file, sources, log.records, model.names)
    if failures:
        _tell_kept(submission, len(failures), len(sources), log)
        raise typer.Exit(1)
    if submission is not None:
        _write_submission(submission, [log.records[source.id] for source in sources], model, template)
    log.remove()


def _write_rows(model: "Model", media: "Sequence[str]", sources: "Sequence[Source]", out: Path, made_with: str) -> None:
    """Write a file per clip with a row per frame.

    Raises:
        Exit: clips could not be predicted.
    """
    from cache.system.atomic_file import write_atomically
    from emi.prediction_log import PredictionLog
    from extract.failures import write_failures
    from train_head.data.labels import FILENAME
    from train_head.data.predictions import rows_text

    def file_of(clip: str) -> Path:
        return out / f"{clip}.txt"

    def write(clip: "ClipRows") -> None:
        file_of(clip.id).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file_of(clip.id), rows_text(model.names, clip.values).encode())
        log.add({FILENAME: clip.id})

    log = PredictionLog(out / "predictions", made_with, sources)
    log.records = {clip: record for clip, record in log.records.items() if file_of(clip).is_file()}
    before = frozenset(log.records)
    with log:
        failures = _predict_all(model, media, sources, log, model.iterate_rows, write)
    write_failures(str(out), [*failures, *model.stream_failures], {s.id for s in sources} - before)
    typer.echo(f"wrote the rows of {len(log.records) - len(before)} clips into {out}")
    if failures:
        _tell_kept(None, len(failures), len(sources), log)
        raise typer.Exit(1)
    log.remove()


def _named_in(template: Path, sources: "Sequence[Source]") -> "list[Source]":
    """Return the clips that a template of frames names.

    Raises:
        LabelError: some are not among the media; names the first five.
    """
    from cache.ids import find_ids
    from train_head.data.image_rows import read_image_rows
    from train_head.evaluation.submission import problem, refuse_problems

    by_id, clips = {source.id: source for source in sources}, read_image_rows(template).clips().ids
    found = find_ids(clips, by_id)
    lacking = [clip for clip, name in zip(clips, found, strict=True) if name is None]
    refuse_problems(problem(lacking, f"of its {len(clips)} clips are not among the media"), template)
    return sorted(by_id[name] for name in found if name is not None)


def _tell_kept(submission: Path | None, failures: int, clips: int, log: "PredictionLog") -> None:
    """Say what was not written because of failures, and what is kept for the next run."""
    if submission is not None:
        typer.echo(
            f"{submission} was not written: {failures} of its {clips} clips cannot be read; mend them, or name the "
            "clips that count with --template CSV",
            err=True,
        )
    if not log.records:
        log.remove()
    elif log.place is not None:
        typer.echo(f"what was predicted is kept for the next run in {log.place}", err=True)


def _places(given: list[str] | None) -> str | dict[str, str] | None:
    """Return where backbones are: by stream, or the only one.

    Raises:
        TrainSettingsError: several, of which one has no name.
    """
    from train_head.data.names import UNNAMED, by_stream
    from train_head.errors import refuse

    if not given:
        return None
    found = {name: str(places[-1]) for name, places in by_stream(given).items()}
    refuse((UNNAMED in found and len(given) > 1, "with several streams, each --backbone is NAME=PLACE"))
    return found.get(UNNAMED, found)


def _predict_all(
    model: "Model",
    media: "Sequence[str]",
    sources: "Sequence[Source]",
    log: "PredictionLog",
    iterate: "Callable[..., Iterator[Any]]",
    write: "Callable[[Any], None]",
) -> "list[Failure]":
    """Predict and write what the log lacks, and print what should be known of the run and the media."""
    from emi.console import Progress
    from extract.failures import Failure
    from extract.sources import left_out

    for note in model.notes:
        typer.echo(note, err=True)
    for place in media:
        tell_left_out(left_out(place, images=model.takes_images))
    done = frozenset(log.records)
    if done:
        typer.echo(f"{len(done)} of {len(sources)} clips were predicted before", err=True)
    failures = []
    with Progress("predicting") as progress:
        for result in iterate(sources, progress, done):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                write(result)
    tell_notes(model.media_notes)
    in_part = [f"{failure.path}: {failure.reason}" for failure in model.stream_failures]
    tell_some("clips predicted without a stream that could not be computed", in_part)
    for failure in failures:
        typer.echo(f"{failure.path}: {failure.reason}", err=True)
    return failures


def _write_csv(
    path: Path | None, sources: "Sequence[Source]", records: "Mapping[str, Record]", names: "Sequence[str]"
) -> None:
    """Write a row per clip, in the order of the ids, with empty cells where it could not be predicted."""
    from train_head.data.labels import FILENAME
    from train_head.evaluation.submission import put
    from train_head.reports.tables import csv_text

    rows = [
        [source.id, *(f"{record[name]:.9g}" if (record := records.get(source.id)) else None for name in names)]
        for source in sorted(sources)
    ]
    text = csv_text([[FILENAME, *names], *rows])
    if path is None:
        typer.echo(text, nl=False)
        return
    put(path, text)
    typer.echo(f"wrote {len(records)} predictions to {path}")


def _write_submission(path: Path, records: "Sequence[Record]", model: "Model", template: Path | None) -> None:
    import numpy as np

    from train_head.data.labels import FILENAME
    from train_head.evaluation.submission import write_submission

    names, bounds = model.names, model.label_range
    values = np.array([[record[name] for name in names] for record in records]).reshape(len(records), len(names))
    clipped = write_submission(path, [record[FILENAME] for record in records], names, values, template, bounds)
    low, high = bounds
    typer.echo(f"wrote {len(records)} predictions to {path}; {clipped} values were clipped to {low:g} and {high:g}")
