"""`emi finetune`: backbone and head in one graph."""

import os
from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from emi.finetuning.settings import FinetuneSettings
from extract.settings import ExtractSettings


@options.takes((ExtractSettings, "revision media_root"), FinetuneSettings, *options.TRAINING)
def finetune(
    media: options.Media,
    train: options.Train,
    out: Annotated[Path, typer.Option(help="Run folder; once finished, a backbone for emi extract as well.")],
    backbone: options.Backbone,
    *,
    valid: options.BestEpochValid = None,
    test: options.Test = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Feature cache of another stream, which the head reads too; repeat."),
    ] = None,
    init_head: Annotated[
        Path | None, typer.Option(help="Run folder of a head trained on this backbone's cache, to start from.")
    ] = None,
    config: options.Config = None,
    more: options.Settings = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the decoded audio, which runs may share [default: OUT-audio].")
    ] = None,
    crops: Annotated[
        Path | None, typer.Option(help="Folder of the crops of faces, which runs may share [default: OUT-crops].")
    ] = None,
    skip_missing: options.SkipUnreadable = False,
    require: options.Require = None,
    ids: options.Ids = None,
    tracker: options.Tracker = None,
    tensorboard: options.TensorBoard = False,
    given: options.Given,
) -> None:
    """Fine-tune the backbone and the head together. Run it again to resume where it stopped.

    A backbone of sound learns from audio; one of faces from videos or folders of crops, with labels per clip or frame.

    On several machines: torchrun --nnodes … -m emi finetune …, or accelerate launch -m emi finetune ….

    Example: emi finetune --media clips/ --train train_split.csv --valid valid_split.csv
    --backbone audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --init-head runs/head --out runs/ft
    """
    from emi.cli.messages import tell_licence
    from emi.cli.training_output import TrainingOutput, label_files, left_out, print_outcome
    from emi.console import Progress
    from emi.finetuning import start
    from emi.finetuning.processes import first
    from train_head.reports.trackers import Trackers
    from train_head.training.loop import SILENT
    from train_head.training.settings import read_assignments

    columns, validation = options.label_settings(given)
    places = {name: given.pop(name, None) for name in ("revision", "media_root")}
    settings, tuning = start.resolve_with_head(config, init_head, **(given | read_assignments(more or ())))
    form = settings.label_format(columns, validation)
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if speaks:
        tell_licence(backbone)
    files = label_files(
        train, valid, test, form=form, skip_missing=skip_missing, require=require, ids=ids, quiet=not speaks
    )
    data = start.FinetuneData(
        media=media,
        label_files=files,
        backbone=backbone,
        init_head=init_head,
        audio=audio,
        crops=crops,
        cache=cache,
        **places,
    )
    with (
        Trackers(out, [*(tracker or ()), *["tensorboard"] * tensorboard]) as trackers,
        Progress("decoding") as decoding,
    ):
        reporter = TrainingOutput(decoding, trackers) if speaks else SILENT
        outcome = start.finetune(data, out, settings, tuning, validation, reporter)
    if first():
        print_outcome(outcome, out, left_out(require, "their media are missing or unreadable"))
