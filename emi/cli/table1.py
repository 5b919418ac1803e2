"""`emi table1`: the paper's table on your data."""

from pathlib import Path
from typing import Annotated

import typer

from cache.settings import take
from emi.cli import options
from emi.finetuning.settings import FinetuneSettings
from train_head.data.label_format import LabelColumns
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

EXAMPLE = (
    "Example: emi table1 --media clips/ --train train_split.csv --valid valid_split.csv --backbone "
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --out runs/table-1"
)


@options.takes(
    FinetuneSettings,
    TrainSettings,
    LabelColumns,
    Validation,
    only="freeze backbone_lr batch_seconds checkpointing lr epochs device label_scale label_range targets rater "
    "group_by",
    group_by="What names the speaker: a label column, or a regular expression on Filename. Splits share no group.",
    freeze="What is never trained in the unfrozen rows: none, cnn or layers:N (the CNN and the first N layers).",
)
def table1(
    media: options.Media,
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, table1.csv, table1.md and table1.svg.")],
    backbone: options.Backbone,
    *,
    test: Annotated[
        Path | None,
        typer.Option(help="CSV of a third split with targets; adds columns, trained on train+val."),
    ] = None,
    seeds: options.RowSeeds = 3,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that the rows have in common.")] = None,
    more: options.Settings = None,
    media_root: options.MediaRoot = None,
    skip_missing: options.SkipUnreadable = False,
    given: options.Given,
) -> None:
    """Run the paper's Table 1 for audio: frozen, + global vector, + unfrozen, + dropout, and train+val with --test.

    Run it again to resume with the first row that is not finished; with more --seeds it adds the missing ones.
    """
    from emi.cli.training_output import TrainingOutput, print_labels
    from emi.cli.weights import tell_licence
    from emi.console import Progress
    from emi.finetuning.settings import resolve
    from emi.finetuning.start import FinetuneData
    from emi.finetuning.table1 import table1 as run
    from train_head.runs.inputs import LabelFiles
    from train_head.training.settings import read_assignments

    columns, validation = take(LabelColumns, given), take(Validation, given)
    settings = given | read_assignments(more or ())
    form = resolve(config, **settings)[0].label_format(columns, validation)
    label_files = LabelFiles.named(train, valid, test, format=form, skip_missing=skip_missing)
    data = FinetuneData(media=media, label_files=label_files, backbone=backbone, media_root=media_root)
    tell_licence(backbone)
    print_labels(label_files)
    with Progress(None, "reading") as reading:
        found = run(data, out, seeds=seeds, config=config, reporter=TrainingOutput(reading), **settings)
    if found.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished")
    typer.echo(found.table())
    typer.echo(f"tables and plot: {out / 'table1.md'}, {out / 'table1.csv'}, {out / 'table1.svg'}")
