"""`emi evaluate`: predictions from any tool against labels."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from emi.cli import options
from train_head.data.label_format import LabelFormat, label_format


@options.takes(
    *options.LABELS,
    targets="Label columns to score [default: every column of numbers].",
    group_by=options.RESAMPLED,
)
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="CSV with Filename and one column per target.")],
    labels: Annotated[Path, typer.Argument(help="Label CSV; its clips and columns decide.")],
    *,
    intervals: Annotated[
        bool, typer.Option("--intervals/--no-intervals", help="Print 95 % bootstrap intervals of Pearson.")
    ] = True,
    bins: Annotated[bool, typer.Option("--bins", help="Print errors by how intense the label is.")] = False,
    train: Annotated[
        Path | None,
        typer.Option(help="Label CSV of the training split, whose mean is a baseline [default: what the run records]."),
    ] = None,
    submission: Annotated[
        bool,
        typer.Option("--submission", help="First check the file as a challenge would; LABELS may have no values."),
    ] = False,
    json_file: options.Json = None,
    given: options.Given,
) -> None:
    """Print Pearson correlation, CCC and absolute error per target and their mean, beside constant predictions.

    With --submission every problem of the file is listed, and the exit code is 1 where there is one.

    Example: emi evaluate runs/paper/predictions_valid.csv valid_split.csv --bins --json scores.json
    """
    from emi.console import check_writable
    from train_head.evaluation.submission import check_submission, has_values

    check_writable(json_file)
    form = label_format(**given)
    numbers: dict[str, Any] = {}
    if submission:
        numbers["problems"] = check_submission(predictions, labels, form)
        for problem in numbers["problems"]:
            typer.echo(f"{predictions}: {problem}", err=True)
        if not numbers["problems"]:
            typer.echo(f"{predictions} can be submitted: header, clips, order and values fit {labels}")
    if not numbers.get("problems") and (not submission or has_values(labels, form)):
        numbers = _score(predictions, labels, form, intervals, bins, train) | numbers
    if json_file is not None:
        json_file.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if numbers.get("problems"):
        raise typer.Exit(1)


def _score(
    predictions: Path, labels: Path, form: LabelFormat, intervals: bool, bins: bool, train: Path | None
) -> dict[str, Any]:
    from train_head.evaluation.baselines import training_mean
    from train_head.evaluation.intervals import bootstrap
    from train_head.evaluation.metrics import evaluate as measure
    from train_head.evaluation.scoring import bin_edges, errors_by_bin, read_pair
    from train_head.runs.inputs import rater_agreement

    predicted, truth = read_pair(predictions, labels, form)
    mean, why_not = training_mean(predictions, truth, train, form)
    report = measure(predicted, truth.values, truth.names, mean)
    found = bootstrap(predicted, truth.values, truth.names, groups=truth.groups) if intervals else None
    if truth.ignored:
        typer.echo(f"targets: {', '.join(truth.names)}; ignored: {', '.join(truth.ignored)}")
    typer.echo("\n".join([f"{report.clips} clips", report.table(found), *([why_not] if why_not else [])]))
    numbers = report.to_dict()
    if raters := rater_agreement(truth):
        typer.echo(f"\n{raters.table(report)}")
        numbers["raters"] = raters.to_dict()
    if found is not None:
        numbers["intervals"] = found.to_dict()
    if bins:
        errors = errors_by_bin(predicted, truth.values, truth.names, bin_edges(truth.range))
        typer.echo(f"\n{errors.table()}")
        numbers["bins"] = errors.to_dict()
    return numbers
