"""`emi ablate`: what each part of a head is worth."""

from pathlib import Path
from typing import Annotated

import typer

from cache.settings import take
from emi.cli import options
from train_head.data.label_format import LabelColumns
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

EXAMPLE = (
    "Example: emi ablate --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/table-1 "
    "--seeds 3"
)


@options.takes(
    TrainSettings,
    LabelColumns,
    Validation,
    only="epochs lr seed label_scale label_range targets rater group_by",
    group_by="What names the speaker: a label column, or a regular expression on Filename. Splits share no group.",
)
def ablate(
    cache: options.Caches,
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, ablation.csv and ablation.md.")],
    *,
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings that the rows have in common.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help='TOML file with other rows: [[row]], name = "…", and any settings.')
    ] = None,
    seeds: options.RowSeeds = 3,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table here too.")] = None,
    skip_missing: options.SkipUncached = False,
    given: options.Given,
) -> None:
    """Train the paper's Table 1 with a frozen backbone, or your rows, and compare each row with the one before.

    Run it again to resume where it stopped; with more --seeds it adds the missing ones.
    """
    from emi.cli.training_output import TrainingOutput, print_labels
    from emi.console import check_writable
    from train_head.protocols import PAPER_ROWS, read_rows, rows_settings
    from train_head.protocols import ablate as run
    from train_head.runs.inputs import LabelFiles, gather_inputs

    check_writable(csv_file)
    columns, validation = take(LabelColumns, given), take(Validation, given)
    resolved = rows_settings(PAPER_ROWS if rows is None else read_rows(rows), config, **given)
    form = resolved[0][1].label_format(columns, validation)
    label_files = LabelFiles.named(train, valid, format=form, skip_missing=skip_missing)
    print_labels(label_files)
    inputs = gather_inputs(cache, label_files)
    found = run(inputs, out, resolved, seeds, TrainingOutput())
    if found.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished")
    if inputs.skipped:
        typer.echo(f"{inputs.skipped} labelled clips were left out because no cache holds them", err=True)
    typer.echo(found.table())
    if csv_file is not None:
        csv_file.write_text(found.csv(), encoding="utf-8")
    typer.echo(f"tables: {out / 'ablation.md'} and {out / 'ablation.csv'}")
