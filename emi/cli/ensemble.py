"""`emi ensemble`: finished runs as one."""

from pathlib import Path
from typing import Annotated

import typer


def ensemble(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders of the same targets and clips, of any heads, or one folder of folds."),
    ],
    out: Annotated[Path, typer.Option(help="Folder that predicts their mean; the runs stay where they are.")],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,…", help="Weight of each, such as 0.6,0.4 [default: all alike].")
    ] = None,
    centre: Annotated[
        bool,
        typer.Option(
            "--centre",
            help="Of frames: first move each run's predictions of a clip to the level of those that agree most (CCC).",
        ),
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(help="Labels of the validation clips [default: those the runs were made with].")
    ] = None,
) -> None:
    """Average what finished runs predict, and show the scores of each and of their mean.

    The runs may have different heads, features and backbones. The folder is a run for predict, compare and evaluate.
    One folder of seeds or folds stands for its runs.

    Example: emi ensemble runs/lstm runs/attention --out runs/both && emi predict clips/ --model runs/both
    """
    from emi.cli.training_output import print_table
    from train_head.errors import TrainSettingsError
    from train_head.protocols import ensemble as run

    try:
        numbers = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError as error:
        raise TrainSettingsError(f"--weights takes numbers with commas, such as 0.6,0.4, got {weights!r}") from error
    print_table(run(runs, out, weights=numbers, labels=labels, centre=centre), out)
    typer.echo(f"run folder: {out}")
