"""`emi evaluate`: predictions from any tool against labels."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLE = "Example: emi evaluate runs/paper/predictions_valid.csv valid_split.csv --bins --json scores.json"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="CSV with Filename and one column per target.")],
    labels: Annotated[Path, typer.Argument(help="Label CSV; its clips and columns decide.")],
    label_scale: Annotated[float, typer.Option(help="100 for labels from 0 to 100.")] = 1.0,
    intervals: Annotated[
        bool, typer.Option("--intervals/--no-intervals", help="95 % bootstrap intervals of Pearson.")
    ] = True,
    group_by: Annotated[
        str | None,
        typer.Option(help="Resample whole groups, a speaker's clips for example: label column, or regex on Filename."),
    ] = None,
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
    from train_head.submission import has_values

    check_writable(json_file)
    if submission:
        _check(predictions, labels, group_by, json_file)
        if not has_values(labels, group_by):
            return
    numbers = _score(predictions, labels, label_scale, intervals, group_by, bins, train)
    if json_file is not None:
        _write(json_file, numbers | ({"problems": []} if submission else {}))


def _check(predictions: Path, labels: Path, group_by: str | None, json_file: Path | None) -> None:
    from train_head.submission import check_submission

    problems = check_submission(predictions, labels, group_by=group_by)
    if json_file is not None:
        _write(json_file, {"problems": problems})
    for problem in problems:
        typer.echo(f"{predictions}: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{predictions} can be submitted: header, clips, order and values fit {labels}")


def _score(
    predictions: Path,
    labels: Path,
    label_scale: float,
    intervals: bool,
    group_by: str | None,
    bins: bool,
    train: Path | None,
) -> dict[str, Any]:
    from train_head.baselines import training_mean
    from train_head.intervals import bootstrap
    from train_head.metrics import evaluate as measure
    from train_head.scoring import errors_by_bin, read_pair

    pair = read_pair(predictions, labels, label_scale, group_by=group_by)
    truth = pair.labels
    mean, why_not = training_mean(predictions, truth, train, label_scale, group_by)
    report = measure(pair.predicted, truth.values, truth.names, mean)
    found = bootstrap(pair.predicted, truth.values, truth.names, groups=truth.groups) if intervals else None
    typer.echo("\n".join([f"{report.clips} clips", report.table(found), *([why_not] if why_not else [])]))
    numbers = report.to_dict()
    if found is not None:
        numbers["intervals"] = found.to_dict()
    if bins:
        errors = errors_by_bin(pair.predicted, truth.values, truth.names)
        typer.echo(f"\n{errors.table()}")
        numbers["bins"] = errors.to_dict()
    return numbers


def _write(path: Path, numbers: dict[str, Any]) -> None:
    path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
