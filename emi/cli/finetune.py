"""`emi finetune`: backbone and head in one graph."""

import os
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
    "Example: emi finetune --media clips/ --train train_split.csv --valid valid_split.csv --backbone "
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --init-head runs/head --out runs/ft"
)


@options.takes(FinetuneSettings, TrainSettings, options.HeadOptions, LabelColumns, Validation)
def finetune(
    media: options.Media,
    train: options.Train,
    out: Annotated[Path, typer.Option(help="Run folder; once finished, a backbone for emi extract as well.")],
    backbone: options.Backbone,
    *,
    revision: options.Revision = None,
    valid: options.BestEpochValid = None,
    test: options.Test = None,
    init_head: Annotated[
        Path | None, typer.Option(help="Run folder of a head trained on this backbone's cache, to start from.")
    ] = None,
    config: options.Config = None,
    more: options.Settings = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the decoded audio, which runs may share [default: OUT-audio].")
    ] = None,
    media_root: options.MediaRoot = None,
    skip_missing: options.SkipUnreadable = False,
    tracker: options.Tracker = None,
    tensorboard: options.TensorBoard = False,
    given: options.Given,
) -> None:
    """Fine-tune the backbone and the head together. Run it again to resume where it stopped.

    On several machines: torchrun --nnodes … -m emi finetune …, or accelerate launch -m emi finetune ….
    """
    from emi.cli.training_output import TrainingOutput, print_labels, print_outcome
    from emi.cli.weights import tell_licence
    from emi.console import Progress
    from emi.finetuning.processes import first
    from emi.finetuning.start import FinetuneData, resolve_with_head
    from emi.finetuning.start import finetune as run
    from train_head.reports.trackers import Trackers
    from train_head.runs.inputs import LabelFiles
    from train_head.training.loop import SILENT
    from train_head.training.settings import read_assignments

    columns, validation = take(LabelColumns, given), take(Validation, given)
    settings, tuning = resolve_with_head(config, init_head, **(given | read_assignments(more or ())))
    form = settings.label_format(columns, validation)
    label_files = LabelFiles.named(train, valid, test, format=form, skip_missing=skip_missing)
    data = FinetuneData(
        media=media,
        label_files=label_files,
        backbone=backbone,
        revision=revision,
        init_head=init_head,
        audio=audio,
        media_root=media_root,
    )
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if speaks:
        tell_licence(backbone)
        print_labels(label_files)
    with (
        Trackers(out, [*(tracker or ()), *["tensorboard"] * tensorboard]) as trackers,
        Progress(None, "decoding") as decoding,
    ):
        reporter = TrainingOutput(decoding, trackers) if speaks else SILENT
        outcome = run(data, out, settings, tuning, validation, reporter)
    if first():
        print_outcome(outcome, out, "their media are missing or unreadable")
