"""`emi table1`: the paper's table on your data."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from emi.finetuning.settings import FinetuneSettings
from extract.settings import ExtractSettings
from train_head.training.settings import TrainSettings


@options.takes(
    (ExtractSettings, "media_root"),
    (FinetuneSettings, "freeze backbone_lr batch_seconds checkpointing"),
    (TrainSettings, "lr epochs device"),
    *options.LABELS,
    freeze="What is never trained in the unfrozen rows: none, cnn or layers:N (the CNN and the first N layers); "
    "backbone leaves these rows out.",
)
def table1(
    train: options.Train,
    valid: options.Valid,
    out: Annotated[Path, typer.Option(help="Folder; gets one folder per row, table1.csv, table1.md and table1.svg.")],
    *,
    media: Annotated[
        str | None,
        typer.Option(
            help="Folder of the media, a CSV with a Filename column, or a text list; not needed with --cache."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Of the audio of --media: silero, a Hugging Face id, or a local folder.")
    ] = None,
    face_backbone: Annotated[
        str, typer.Option(help="Of the faces in --media; none leaves the rows with faces out.")
    ] = "mtcnn",
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Features to take instead of extracting them: audio=PATH, face=PATH; repeat.",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="CSV of a third split with targets; adds columns, trained on train+val."),
    ] = None,
    seeds: options.RowSeeds = 3,
    config: options.CommonConfig = None,
    more: options.Settings = None,
    skip_missing: options.SkipUnreadable = False,
    given: options.Given,
) -> None:
    """Run the paper's Table 1: the official baselines, vision only, multimodal, and audio step by step.

    The steps: frozen, + global vector, + unfrozen, + dropout; with --test also trained on train+val. Rows that cannot
    be made, as without faces, are left out. Run it again to resume with the first row that is not finished; with more
    --seeds it adds the missing ones.

    Example: emi table1 --media clips/ --train train_split.csv --valid valid_split.csv
    --backbone audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --out runs/table-1
    """
    from emi.cli.messages import tell_licence
    from emi.cli.training_output import TrainingOutput, label_files, print_table
    from emi.console import Progress
    from emi.finetuning.settings import resolve
    from emi.paper_table.features import TableData
    from emi.paper_table.run import table1 as run
    from train_head.training.settings import read_assignments

    columns, validation = options.label_settings(given)
    media_root = given.pop("media_root", None)
    settings = given | read_assignments(more or ())
    form = resolve(config, **settings)[0].label_format(columns, validation)
    if backbone is not None:
        tell_licence(backbone)
    files = label_files(train, valid, test, form=form, skip_missing=skip_missing)
    data = TableData(
        label_files=files,
        media=media,
        backbone=backbone,
        face_backbone=face_backbone,
        media_root=media_root,
        cache=cache,
    )
    with Progress("reading") as reading:
        found = run(data, out, seeds=seeds, config=config, reporter=TrainingOutput(reading), **settings)
    print_table(found, out)
    typer.echo(f"tables and plot: {out / 'table1.md'}, {out / 'table1.csv'}, {out / 'table1.svg'}")
