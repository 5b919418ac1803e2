"""`emi evaluate`: predictions from any tool against labels."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emi.cli import options

if TYPE_CHECKING:
    from train_head.data.label_format import LabelFormat

EXAMPLE = "Example: emi evaluate runs/paper/predictions_valid.csv valid_split.csv --bins --json scores.json"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="CSV with Filename and one column per target.")],
    labels: Annotated[Path, typer.Argument(help="Label CSV; its clips and columns decide.")],
    targets: options.Targets = None,
    label_scale: options.LabelScale = None,
    label_range: options.LabelRange = None,
    rater: options.Rater = None,
    intervals: Annotated[
        bool, typer.Option("--intervals/--no-intervals", help="95 % bootstrap intervals of Pearson.")
    ] = True,
    group_by: options.ResampleBy = None,
    bins: Annotated[bool, typer.Option("--bins", help="Errors by how intense the label is.")] = False,
    train: Annotated[
        Path | None,
        typer.Option(help="Label CSV of the training split, whose mean is a baseline [default: what the run records]."),
    ] = None,
    submission: Annotated[
        bool,
        typer.Option("--submission", help="First check the file as a challenge would; LABELS may have no values."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here as JSON.")] = None,
) -> None:
    """Print Pearson correlation, CCC and absolute error per target and their mean, beside constant predictions.

    With --submission every problem of the file is listed, and the exit code is 1 where there is one.
    """
    from emi.console import check_writable
    from train_head.data.label_format import label_format
    from train_head.evaluation.submission import has_values

    check_writable(json_file)
    form = label_format(
        targets=targets, rater=rater, group_by=group_by, label_scale=label_scale, label_range=label_range
    )
    if submission:
        _check(predictions, labels, form, json_file)
        if not has_values(labels, form):
            return
    numbers = _score(predictions, labels, form, intervals, bins, train)
    if json_file is not None:
        _write(json_file, numbers | ({"problems": []} if submission else {}))


def _check(predictions: Path, labels: Path, form: "LabelFormat", json_file: Path | None) -> None:
    from train_head.evaluation.submission import check_submission

    problems = check_submission(predictions, labels, form)
    if json_file is not None:
        _write(json_file, {"problems": problems})
    for problem in problems:
        typer.echo(f"{predictions}: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{predictions} can be submitted: header, clips, order and values fit {labels}")


def _score(
    predictions: Path, labels: Path, form: "LabelFormat", intervals: bool, bins: bool, train: Path | None
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


def _write(path: Path, numbers: dict[str, Any]) -> None:
    path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
