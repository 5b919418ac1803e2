"""`emi table1`: the paper's table on your data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from train_head.settings import TrainSettings
    from train_head.trainer import Record

EXAMPLE = (
    "Example: emi table1 --media clips/ --train train_split.csv --valid valid_split.csv --backbone "
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --out runs/table-1"
)


def table1(
    media: Annotated[str, typer.Option(help="Folder of the media, a CSV with a Filename column, or a text list.")],
    train: Annotated[Path, typer.Option(help="Label CSV of the training split.")],
    valid: Annotated[Path, typer.Option(help="Label CSV of the validation split.")],
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, table1.csv, table1.md and table1.svg.")],
    backbone: Annotated[str, typer.Option(help="silero, a Hugging Face id, or a local folder.")],
    test: Annotated[
        Path | None, typer.Option(help="CSV of a third split with targets; adds the rows trained on train+val.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per row.")] = 3,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that the rows have in common.")] = None,
    freeze: Annotated[
        str | None, typer.Option(help="What stays frozen in the unfrozen rows: none, cnn or layers:N [default: cnn].")
    ] = None,
    backbone_lr: Annotated[float | None, typer.Option(help="Its peak learning rate [default: 1e-5].")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the head [default: 1e-4].")] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: 30]")] = None,
    batch_seconds: Annotated[float | None, typer.Option(help="Audio on a device at once; 0 chooses.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Less memory for more time [default: off].")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto [default: auto].")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting: --set hidden=256; repeat."),
    ] = None,
    media_root: Annotated[Path | None, typer.Option(help="Where the paths of a CSV or list start.")] = None,
    label_scale: Annotated[float | None, typer.Option(help="100 for labels from 0 to 100 [default: 1].")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Who speaks: label column, or regex on Filename. The splits then share no group."),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out labelled clips whose media are missing or unreadable.")
    ] = False,
) -> None:
    """Run the paper's Table 1 for audio: frozen, + global vector, + unfrozen, + dropout, and train+val with --test.

    Run it again to go on with the first row that is not finished; with more --seeds it adds the missing ones.
    """
    from emi.console import Progress
    from emi.end_to_end.table1 import table1 as run_table
    from train_head.progress import EpochLines
    from train_head.settings import read_assignments

    lines = EpochLines(0, typer.echo)

    def begin(name: str, settings: "TrainSettings") -> None:
        nonlocal lines
        lines = EpochLines(settings.stop_after or settings.epochs, typer.echo)
        typer.echo(f"{name}:")

    def show(record: "Record") -> None:
        lines(record)

    typed = {
        "freeze": freeze,
        "backbone_lr": backbone_lr,
        "lr": lr,
        "epochs": epochs,
        "batch_seconds": batch_seconds,
        "checkpointing": checkpointing,
        "device": device,
        "label_scale": label_scale,
    }
    given = {key: value for key, value in typed.items() if value is not None} | read_assignments(more or ())
    with Progress(None, "read") as reading:
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
            group_by=group_by,
            on_row=lambda name: typer.echo(f"row {name}"),
            on_decode=reading,
            on_run=begin,
            on_epoch=show,
            **given,
        )
    if found.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished")
    typer.echo(found.table())
    typer.echo(f"tables and plot: {out / 'table1.md'}, {out / 'table1.csv'}, {out / 'table1.svg'}")
