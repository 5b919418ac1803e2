"""`emi evaluate`: predictions from any tool against labels."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emi.cli import options
from train_head.data.label_format import LabelFormat, label_format
from train_head.errors import LabelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from train_head.data.labels import Labels


@options.takes(
    *options.LABELS,
    targets="Label columns to score [default: every column of numbers].",
    group_by=options.RESAMPLED,
)
def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="CSV with Filename and one column per target; of frames, also a folder of text files, or a submission."
        ),
    ],
    labels: Annotated[Path, typer.Argument(help="Labels, per clip or per frame; their clips and columns decide.")],
    *,
    intervals: Annotated[
        bool,
        typer.Option(
            "--intervals/--no-intervals", help="Print 95 % bootstrap intervals of Pearson, or of CCC for frames."
        ),
    ] = True,
    bins: Annotated[bool, typer.Option("--bins", help="Print errors by how intense the label is.")] = False,
    train: Annotated[
        Path | None,
        typer.Option(help="Label CSV of the training split, whose mean is a baseline [default: what the run records]."),
    ] = None,
    submission: Annotated[
        bool,
        typer.Option(
            "--submission",
            help="First check the file as a challenge would; LABELS may have no values. Of frames: the template.",
        ),
    ] = False,
    json_file: options.Json = None,
    given: options.Given,
) -> None:
    """Print Pearson correlation, CCC and absolute error per target and their mean, beside constant predictions.

    For labels per frame, the figures are over all labelled rows, followed by those of each clip.

    With --submission every problem of the file is listed, and the exit code is 1 where there is one.

    Example: emi evaluate runs/paper/predictions_valid.csv valid_split.csv --bins --json scores.json
    """
    from emi.console import check_writable
    from train_head.data.image_rows import has_image_rows
    from train_head.evaluation.frame_submission import check_frame_submission
    from train_head.evaluation.submission import check_submission, has_values

    check_writable(json_file)
    form, frames = label_format(**given), submission and has_image_rows(labels)
    if submission and (predictions.is_dir() or labels.is_dir()):
        raise LabelError(
            "--submission checks a CSV beside a template, not folders with rows per frame; leave it out, or write the "
            "file with `emi submission`"
        )
    numbers: dict[str, Any] = {}
    if frames:
        numbers["problems"] = check_frame_submission(predictions, labels)
    elif submission:
        numbers["problems"] = check_submission(predictions, labels, form)
    if submission:
        for problem in numbers["problems"]:
            typer.echo(f"{predictions}: {problem}", err=True)
        if not numbers["problems"]:
            typer.echo(f"{predictions} can be submitted: header, clips, order and values fit {labels}")
    if not numbers.get("problems") and (not submission or (not frames and has_values(labels, form))):
        numbers = _score(predictions, labels, form, intervals, bins, train) | numbers
    if json_file is not None:
        json_file.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if numbers.get("problems"):
        raise typer.Exit(1)


def _score(
    predictions: Path, labels: Path, form: LabelFormat, intervals: bool, bins: bool, train: Path | None
) -> dict[str, Any]:
    from train_head.data.matching import cut_notes
    from train_head.evaluation.baselines import training_mean
    from train_head.evaluation.labelled import intervals_of, report_of
    from train_head.evaluation.scoring import bin_edges, errors_by_bin, read_pair
    from train_head.runs.inputs import rater_agreement

    predicted, truth = read_pair(predictions, labels, form)
    mean, why_not = training_mean(predictions, truth, train, form)
    report = report_of(predicted, truth, mean)
    found = intervals_of(predicted, truth, truth.groups) if intervals else None
    for note in cut_notes(truth):
        typer.echo(note, err=True)
    if truth.ignored:
        typer.echo(f"targets: {', '.join(truth.names)}; ignored: {', '.join(truth.ignored)}")
    counted = f"{len(truth)} clips{f', {report.clips} rows' if truth.by_frame else ''}"
    typer.echo("\n".join([counted, report.table(found), *([why_not] if why_not else [])]))
    numbers = report.to_dict() | ({"clips": _by_clip(predicted, truth)} if truth.by_frame else {})
    if raters := rater_agreement(truth):
        typer.echo(f"\n{raters.table(report)}")
        numbers["raters"] = raters.to_dict()
    if found is not None:
        numbers["intervals"] = found.to_dict()
    if bins:
        errors = errors_by_bin(predicted, truth.values, truth.names, bin_edges(truth.range))
        typer.echo(f"\n{errors.table(report.counted)}")
        numbers["bins"] = errors.to_dict()
    return numbers


def _by_clip(predicted: "NDArray[Any]", truth: "Labels") -> dict[str, Any]:
    """Print CCC and Pearson of each clip, and return all metrics of each."""
    from train_head.evaluation.labelled import reports_by_clip
    from train_head.evaluation.metrics import METRICS
    from train_head.reports.tables import cell, text_table

    reports = reports_by_clip(predicted, truth)
    header = [f"{METRICS[metric]} {name}" for metric in ("ccc", "pearson") for name in truth.names]
    rows = [
        [name, str(max(report.counts)), *(cell(value) for value in (*report.concordance, *report.pearson))]
        for name, report in reports.items()
    ]
    typer.echo(f"\nwithin each clip:\n{text_table(['', 'labelled rows', *header], rows)}")
    return {name: report.to_dict() for name, report in reports.items()}
