"""`emi predict`: intensities of media with a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emi.cli import options
from emi.cli.messages import tell_left_out, tell_licence_of_run, tell_notes, tell_some
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emi.prediction import Model, Record
    from extract.failures import Failure
    from extract.sources import Source


@options.takes(
    (ExtractSettings, "backbone device media_root track allow_truncated"),
    backbone="Where the backbone is now, if it was moved [default: as the run says].",
    allow_truncated="Use files that are cut off or damaged as far as they decode [default: off].",
)
def predict(
    media: Annotated[list[str], typer.Argument(help="Media files, folders, CSVs or text lists.")],
    model: Annotated[Path, typer.Option(help="Run folder.")],
    *,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write here instead of to the screen.")] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Write a challenge's file: integer Filenames without padding, sorted, values within 0 to 1."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="CSV whose clips are predicted, and whose row order the --submission takes.")
    ] = None,
    given: options.Given,
) -> None:
    """Predict intensities; the columns are the targets the run was trained on.

    With --template only its clips are predicted. A --submission is written whole or not at all. What could not be
    computed is listed in failures.csv beside the --csv file.

    Example: emi predict clips/ --model runs/paper --submission predictions.csv --template test_split.csv
    """
    from emi.console import check_writable
    from emi.prediction import list_sources, load
    from extract.failures import Failure, write_failures
    from extract.settings import DecodeOptions
    from train_head.data.labels import FILENAME
    from train_head.errors import LabelError, refuse
    from train_head.evaluation.submission import template_clips

    refuse(
        (template and not submission, "--template is for --submission FILE; leave it out, or name that file"),
        (template and not template.is_file(), f"there is no template at {template}"),
        error=LabelError,
    )
    check_writable(csv_file, submission)
    tell_licence_of_run(model)
    media_root = given.pop("media_root", None)
    decoding = {name: given.pop(name) for name in ("track", "allow_truncated") if name in given}
    loaded = load(model, **given, options=DecodeOptions(**decoding))
    sources = list_sources(media, media_root)
    if template is not None:
        sources = [sources[i] for i in template_clips(template, loaded.names, [source.id for source in sources])]
    results = _predict_all(loaded, media, sources)
    failures = [result for result in results if isinstance(result, Failure)]
    records = sorted((r for r in results if not isinstance(r, Failure)), key=lambda record: record[FILENAME])
    for failure in failures:
        typer.echo(f"{failure.path}: {failure.reason}", err=True)
    if csv_file is not None:
        write_failures(str(csv_file), [*failures, *loaded.stream_failures], [source.id for source in sources])
    if csv_file or submission is None:
        _write_csv(csv_file, records, loaded.names)
    if submission is not None and not failures:
        _write_submission(submission, records, loaded, template)
    if submission is not None and failures:
        typer.echo(
            f"{submission} was not written: {len(failures)} of its {len(results)} clips cannot be read; mend them, or "
            "name the clips that count with --template CSV",
            err=True,
        )
    if failures:
        raise typer.Exit(1)


def _predict_all(model: "Model", media: "Sequence[str]", sources: "Sequence[Source]") -> "list[Record | Failure]":
    """Predict, and print what should be known of the run and the media."""
    from emi.console import Progress
    from extract.sources import left_out

    for note in model.notes:
        typer.echo(note, err=True)
    for place in media:
        tell_left_out(left_out(place))
    with Progress("predicting") as progress:
        results = list(model.iterate_sources(sources, progress))
    tell_notes(model.media_notes)
    in_part = [f"{failure.path}: {failure.reason}" for failure in model.stream_failures]
    tell_some("clips predicted without a stream that could not be computed", in_part)
    return results


def _write_csv(path: Path | None, records: "Sequence[Record]", names: "Sequence[str]") -> None:
    from train_head.data.labels import FILENAME
    from train_head.evaluation.submission import put
    from train_head.reports.tables import csv_text

    rows = ([record[FILENAME], *(f"{record[name]:.9g}" for name in names)] for record in records)
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
