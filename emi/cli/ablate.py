"""`emi ablate`: what each part of a head is worth."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from emi.cli.telling import RunLines, say_labels

EXAMPLE = (
    "Example: emi ablate --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/table-1 "
    "--seeds 3"
)


def ablate(
    cache: options.Caches,
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, ablation.csv and ablation.md.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings that the rows have in common.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help='TOML file with other rows: [[row]], name = "…", and any settings.')
    ] = None,
    seeds: options.RowSeeds = 3,
    group_by: options.GroupBy = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table here too.")] = None,
    epochs: options.Epochs = None,
    lr: options.Lr = None,
    seed: options.Seed = None,
    label_scale: options.LabelScale = None,
    label_range: options.LabelRange = None,
    targets: options.Targets = None,
    rater: options.Rater = None,
    skip_missing: options.SkipUncached = False,
) -> None:
    """Train the paper's Table 1 with a frozen backbone, or your rows, and compare each row with the one before.

    Run it again to go on where it stopped; with more --seeds it adds the missing ones.
    """
    from emi.console import check_writable
    from train_head.data.label_format import label_columns
    from train_head.protocols import PAPER_ROWS, read_rows, rows_settings
    from train_head.protocols import ablate as run_ablation
    from train_head.runs.train import gather_inputs

    check_writable(csv_file)
    chosen = PAPER_ROWS if rows is None else read_rows(rows)
    resolved = rows_settings(
        chosen, config, epochs=epochs, lr=lr, seed=seed, label_scale=label_scale, label_range=label_range
    )
    form = resolved[0][1].label_format(label_columns(targets, rater, group_by))
    say_labels(train, form)
    inputs = gather_inputs(cache, {"train": train, "valid": valid}, form, skip_missing=skip_missing)
    lines = RunLines()
    found = run_ablation(inputs, out, resolved, seeds, on_run=lines.on_run, on_epoch=lines)
    if found.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished")
    if inputs.skipped:
        typer.echo(f"{inputs.skipped} labelled clips were left out because no cache holds them", err=True)
    typer.echo(found.table())
    if csv_file is not None:
        csv_file.write_text(found.csv(), encoding="utf-8")
    typer.echo(f"tables: {out / 'ablation.md'} and {out / 'ablation.csv'}")
