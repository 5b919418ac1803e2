"""`emi compare`: two runs on the same clips."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options

EXAMPLE = "Example: emi compare runs/paper runs/wider --split valid --group-by 'Actor_(\\d+)'"


class Split(StrEnum):
    """Splits that a run predicts."""

    valid = "valid"
    test = "test"


class Metric(StrEnum):
    """What runs can be compared by."""

    pearson = "pearson"
    ccc = "ccc"
    mae = "mae"


def compare(
    run_a: Annotated[Path, typer.Argument(help="Run folder, or a prediction CSV.")],
    run_b: Annotated[Path, typer.Argument(help="Another of the same clips.")],
    split: Annotated[Split, typer.Option(help="Which predictions of a run folder.")] = Split.valid,
    metric: Annotated[Metric, typer.Option(help="Of mae, lower is better.")] = Metric.pearson,
    labels: Annotated[Path | None, typer.Option(help="Label CSV [default: the one the runs were made with].")] = None,
    targets: options.Targets = None,
    label_scale: options.RunsLabelScale = None,
    label_range: options.LabelRange = None,
    rater: options.Rater = None,
    group_by: options.ResampleBy = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here as JSON.")] = None,
) -> None:
    """Say by how much two runs differ, with 95 % intervals of a paired bootstrap, and whether that could be chance.

    With groups, or few clips, p is of a sign-flip test over them: the table says which.
    """
    from emi.console import check_writable
    from train_head.evaluation.compare import compare as compare_runs

    check_writable(json_file)
    found = compare_runs(
        run_a,
        run_b,
        split=split.value,
        labels=labels,
        label_scale=label_scale,
        label_range=label_range,
        targets=targets,
        rater=rater,
        group_by=group_by,
        resamples=resamples,
        seed=seed,
        metric=metric.value,
    )
    typer.echo(found.table())
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
