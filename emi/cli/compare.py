"""`emi compare`: two runs on the same clips."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from emi.cli import options


@options.takes(
    *options.LABELS,
    label_scale="100 for labels from 0 to 100 [default: as the runs].",
    label_range="-1,1 or 1,5: the ends of the labels' scale [default: as the runs].",
    targets="Label columns to compare [default: as the runs].",
    rater="Label column that names the rater, where clips have a row for each of several [default: as the runs].",
    group_by=f"{options.RESAMPLED} [default: as the runs].",
)
def compare(
    run_a: Annotated[Path, typer.Argument(help="Run folder, or predictions: a CSV or a folder of text files.")],
    run_b: Annotated[Path, typer.Argument(help="Another one, with predictions of the same clips.")],
    *,
    split: Annotated[Literal["valid", "test"], typer.Option(help="Which predictions of a run folder.")] = "valid",
    metric: Annotated[
        Literal["pearson", "ccc", "mae"] | None,
        typer.Option(help="What is compared; lower is better for mae [default: pearson; of labels per frame ccc]."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels [default: those the runs were made with].")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the resamples.")] = 0,
    json_file: options.Json = None,
    given: options.Given,
) -> None:
    """Show by how much two runs differ, with 95 % intervals of a paired bootstrap, and whether that could be chance.

    With groups, or with few clips, p comes from a sign-flip test: the table says which test was made.

    Example: emi compare runs/paper runs/wider --split valid --group-by 'Actor_(\\d+)'
    """
    from emi.console import check_writable
    from train_head.evaluation.compare import compare as run

    check_writable(json_file)
    found = run(
        run_a,
        run_b,
        split=split,
        metric=metric or "",
        labels=labels,
        resamples=resamples,
        seed=seed,
        **given,
    )
    typer.echo(found.table())
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
