"""`emi ablate`: what each part of a head is worth."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from train_head.training.settings import TrainSettings


@options.takes((TrainSettings, "epochs lr seed"), *options.LABELS)
def ablate(
    cache: options.Caches,
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, ablation.csv and ablation.md.")],
    *,
    config: options.CommonConfig = None,
    rows: Annotated[
        Path | None, typer.Option(help='TOML file with other rows: [[row]], name = "…", and any settings.')
    ] = None,
    seeds: options.RowSeeds = 3,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table here too.")] = None,
    skip_missing: options.SkipUncached = False,
    require: options.Require = None,
    given: options.Given,
) -> None:
    """Train the paper's Table 1 with a frozen backbone, or your rows, and compare each row with the one before.

    Run it again to resume where it stopped; with more --seeds it adds the missing ones.

    Example: emi ablate --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/table-1
    --seeds 3
    """
    from emi.cli.training_output import TrainingOutput, label_files, left_out, print_table
    from emi.console import check_writable
    from train_head import protocols
    from train_head.runs.inputs import gather_inputs

    check_writable(csv_file)
    columns, validation = options.label_settings(given)
    chosen = protocols.PAPER_ROWS if rows is None else protocols.read_rows(rows)
    resolved = protocols.rows_settings(chosen, config, **given)
    form = resolved[0][1].label_format(columns, validation)
    files = label_files(train, valid, form=form, skip_missing=skip_missing, require=require)
    inputs = gather_inputs(cache, files)
    found = protocols.ablate(inputs, out, resolved, seeds, TrainingOutput())
    print_table(found, out, skipped=inputs.skipped, missing=left_out(require))
    if csv_file is not None:
        csv_file.write_text(found.csv(), encoding="utf-8")
    typer.echo(f"tables: {out / 'ablation.md'} and {out / 'ablation.csv'}")
