"""`emi ablate`: what each part of a head is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from train_head.settings import TrainSettings
    from train_head.trainer import Record

EXAMPLE = (
    "Example: emi ablate --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/table-1 "
    "--seeds 3"
)


def ablate(
    cache: Annotated[list[str], typer.Option(help="Feature cache; repeat it for clips spread over several.")],
    train: Annotated[Path, typer.Option(help="Label CSV of the training split.")],
    valid: Annotated[Path, typer.Option(help="Label CSV of the validation split, on which the rows are compared.")],
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, ablation.csv and ablation.md.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings that the rows have in common.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help='TOML file with other rows: [[row]], name = "…", and any settings.')
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per row.")] = 3,
    group_by: Annotated[
        str | None,
        typer.Option(help="Who speaks: label column, or regex on Filename. The splits then share no group."),
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table here too.")] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: 30]")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [default: 1e-4].")] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed [default: 0].")] = None,
    label_scale: Annotated[float | None, typer.Option(help="100 for labels from 0 to 100 [default: 1].")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out labelled clips that no cache holds.")
    ] = False,
) -> None:
    """Train the paper's Table 1 with a frozen backbone, or your rows, and compare each row with the one before.

    Run it again to go on where it stopped; with more --seeds it adds the missing ones.
    """
    from emi.console import check_writable
    from train_head.progress import EpochLines
    from train_head.protocols import PAPER_ROWS, read_rows, rows_settings
    from train_head.protocols import ablate as run_ablation
    from train_head.train import gather_inputs

    check_writable(csv_file)
    chosen = PAPER_ROWS if rows is None else read_rows(rows)
    resolved = rows_settings(chosen, config, epochs=epochs, lr=lr, seed=seed, label_scale=label_scale)
    scale = resolved[0][1].label_scale
    files = {"train": train, "valid": valid}
    inputs = gather_inputs(cache, files, scale, skip_missing=skip_missing, group_by=group_by)
    lines = EpochLines(0, typer.echo)

    def begin(name: str, settings: "TrainSettings") -> None:
        nonlocal lines
        lines = EpochLines(settings.stop_after or settings.epochs, typer.echo)
        typer.echo(f"{name}:")

    def show(record: "Record") -> None:
        lines(record)

    found = run_ablation(inputs, out, resolved, seeds, on_run=begin, on_epoch=show)
    if found.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished")
    if inputs.skipped:
        typer.echo(f"{inputs.skipped} labelled clips were left out because no cache holds them", err=True)
    typer.echo(found.table())
    if csv_file is not None:
        csv_file.write_text(found.csv(), encoding="utf-8")
    typer.echo(f"tables: {out / 'ablation.md'} and {out / 'ablation.csv'}")
