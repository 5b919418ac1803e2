"""`emi table1`: the paper's table on your data."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from emi.cli.telling import RunLines, say_labels

EXAMPLE = (
    "Example: emi table1 --media clips/ --train train_split.csv --valid valid_split.csv --backbone "
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --out runs/table-1"
)


def table1(
    media: options.Media,
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, table1.csv, table1.md and table1.svg.")],
    backbone: options.Backbone,
    test: Annotated[
        Path | None,
        typer.Option(help="CSV of a third split with targets; adds columns, trained on train+val."),
    ] = None,
    seeds: options.RowSeeds = 3,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that the rows have in common.")] = None,
    freeze: Annotated[
        str | None, typer.Option(help="What stays frozen in the unfrozen rows: none, cnn or layers:N [default: cnn].")
    ] = None,
    backbone_lr: options.BackboneLr = None,
    lr: options.Lr = None,
    epochs: options.Epochs = None,
    batch_seconds: options.BatchSeconds = None,
    checkpointing: options.Checkpointing = None,
    device: options.Device = None,
    more: options.Settings = None,
    media_root: options.MediaRoot = None,
    label_scale: options.LabelScale = None,
    label_range: options.LabelRange = None,
    targets: options.Targets = None,
    rater: options.Rater = None,
    group_by: options.GroupBy = None,
    skip_missing: options.SkipUnreadable = False,
) -> None:
    """Run the paper's Table 1 for audio: frozen, + global vector, + unfrozen, + dropout, and train+val with --test.

    Run it again to go on with the first row that is not finished; with more --seeds it adds the missing ones.
    """
    from emi.cli.weights import tell_licence
    from emi.console import Progress
    from emi.finetuning.settings import resolve
    from emi.finetuning.table1 import table1 as run_table
    from train_head.data.label_format import label_columns
    from train_head.training.settings import read_assignments

    lines, columns = RunLines(), label_columns(targets, rater, group_by)
    typed = {
        "freeze": freeze,
        "backbone_lr": backbone_lr,
        "lr": lr,
        "epochs": epochs,
        "batch_seconds": batch_seconds,
        "checkpointing": checkpointing,
        "device": device,
        "label_scale": label_scale,
        "label_range": label_range,
    }
    given = {key: value for key, value in typed.items() if value is not None} | read_assignments(more or ())
    tell_licence(backbone)
    say_labels(train, resolve(config, **given)[0].label_format(columns))
    with Progress(None, "reading") as reading:
        found = run_table(
            media,
            train,
            valid,
            out,
            backbone=backbone,
            test=test,
            seeds=seeds,
            config=config,
            media_root=media_root,
            skip_missing=skip_missing,
            columns=columns,
            on_row=lambda name: typer.echo(f"row {name}"),
            on_decode=reading,
            on_run=lines.on_run,
            on_epoch=lines,
            **given,
        )
    if found.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished")
    typer.echo(found.table())
    typer.echo(f"tables and plot: {out / 'table1.md'}, {out / 'table1.csv'}, {out / 'table1.svg'}")
