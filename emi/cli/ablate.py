"""`emi ablate`: what each part of a head is worth, and each stream."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from train_head.training.settings import TrainSettings


@options.takes((TrainSettings, "epochs lr seed label_fps"), *options.LABELS)
def ablate(
    cache: options.Caches,
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, and the tables.")],
    *,
    config: options.CommonConfig = None,
    rows: Annotated[
        Path | None, typer.Option(help='TOML file with other rows: [[row]], name = "…", any settings, streams = ["…"].')
    ] = None,
    streams: Annotated[
        bool, typer.Option("--streams", help="Train on every subset of the streams instead: what each is worth.")
    ] = False,
    seeds: options.RowSeeds = 3,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table here too.")] = None,
    skip_missing: options.SkipUncached = False,
    require: options.Require = None,
    ids: options.Ids = None,
    given: options.Given,
) -> None:
    """Train the paper's Table 1 with a frozen backbone, or your rows, and compare each row with the one before.

    With --streams, train the head of --config on every subset of the streams, and compare all streams with all but one.

    Run it again to resume where it stopped; with more --seeds it adds the missing ones.

    Example: emi ablate --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/table-1
    --seeds 3
    """
    from emi.cli.training_output import TrainingOutput, label_files, left_out, print_table
    from emi.console import check_writable
    from train_head import protocols
    from train_head.errors import refuse
    from train_head.runs.inputs import gather_inputs

    check_writable(csv_file)
    refuse((streams and rows is not None, "--streams and --rows do not go together; leave one out"))
    columns, validation = options.label_settings(given)
    chosen = protocols.PAPER_ROWS if rows is None else protocols.read_rows(rows)
    base = [protocols.Row("streams")] if streams else chosen
    resolved = protocols.rows_settings(base, config, **given)
    form = resolved[0][1].label_format(columns, validation)
    files = label_files(train, valid, form=form, skip_missing=skip_missing, require=require, ids=ids)
    inputs = gather_inputs(cache, files)
    found: protocols.Ablation | protocols.StreamAblation
    if streams:
        found = protocols.ablate_streams(inputs, out, resolved[0][1], seeds, TrainingOutput())
    else:
        parts = protocols.rows_streams(chosen)
        found = protocols.ablate(inputs, out, resolved, seeds, TrainingOutput(), streams=parts)
    print_table(found, out, skipped=inputs.skipped, missing=left_out(require))
    if csv_file is not None:
        csv_file.write_text(found.csv(), encoding="utf-8")
    kind = "streams" if streams else "ablation"
    typer.echo(f"tables: {out / f'{kind}.md'} and {out / f'{kind}.csv'}")
