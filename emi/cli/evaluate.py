"""`emi evaluate`: predictions from any tool against labels."""

import json
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: emi evaluate runs/paper/predictions_valid.csv valid_split.csv"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="CSV with Filename and one column per target.")],
    labels: Annotated[Path, typer.Argument(help="Label CSV; its clips and columns decide.")],
    label_scale: Annotated[float, typer.Option(help="100 for labels from 0 to 100.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print Pearson correlation, CCC and absolute error per target and their mean."""
    from train_head.scoring import score_files

    report = score_files(predictions, labels, label_scale)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else f"{report.clips} clips\n{report.table()}")
