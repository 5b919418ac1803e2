"""`emi finetune`: backbone and head in one graph."""

import os
from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options

EXAMPLE = (
    "Example: emi finetune --media clips/ --train train_split.csv --valid valid_split.csv --backbone "
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim --init-head runs/head --out runs/ft"
)


def finetune(
    media: options.Media,
    train: options.Train,
    out: Annotated[Path, typer.Option(help="Run folder; once finished, a backbone for emi extract as well.")],
    backbone: options.Backbone,
    revision: options.Revision = None,
    valid: options.BestEpochValid = None,
    test: options.Test = None,
    init_head: Annotated[
        Path | None, typer.Option(help="Run folder of a head trained on this backbone's cache, to start from.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, those of the backbone in [finetune].")
    ] = None,
    freeze: options.Freeze = None,
    unfreeze_every: Annotated[
        int | None,
        typer.Option(
            help="The head learns alone for N epochs, then a stage more every N, top first [default: 0, all]."
        ),
    ] = None,
    backbone_lr: options.BackboneLr = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Learning rate of each layer, by that of the one above [default: 1].")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Rank of low-rank adapters, which learn in place of the backbone; needs peft.")
    ] = None,
    spec_augment: Annotated[
        bool | None, typer.Option(help="Mask spans of frames as the checkpoint says [default: off].")
    ] = None,
    layerdrop: Annotated[float | None, typer.Option(help="Chance of a layer to be skipped [default: 0].")] = None,
    backbone_dropout: Annotated[
        float | None, typer.Option(help="Of the backbone; -1 leaves the checkpoint's own [default: -1].")
    ] = None,
    head: Annotated[str | None, typer.Option(help="As for emi train-head [default: lstm].")] = None,
    loss: Annotated[str | None, typer.Option(help="As for emi train-head [default: mse].")] = None,
    lr: options.Lr = None,
    epochs: options.Epochs = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per step, on all devices [default: 32].")] = None,
    batch_seconds: options.BatchSeconds = None,
    checkpointing: options.Checkpointing = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes on this machine that share each batch; each holds the whole model [default: 1]."),
    ] = None,
    fsdp: Annotated[
        bool | None, typer.Option(help="Split the model over the processes: memory [default: off].")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Kept of each clip [default: 12].")] = None,
    seed: options.Seed = None,
    precision: Annotated[
        str | None, typer.Option(help="Of matrix products: fp32, bf16, fp16 or auto [default: auto].")
    ] = None,
    device: options.Device = None,
    more: options.Settings = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the decoded audio, which runs may share [default: OUT-audio].")
    ] = None,
    media_root: options.MediaRoot = None,
    track: options.Track = None,
    allow_truncated: options.AllowTruncated = False,
    label_scale: options.LabelScale = None,
    label_range: options.LabelRange = None,
    targets: options.Targets = None,
    rater: options.Rater = None,
    skip_missing: options.SkipUnreadable = False,
    seeds: options.Seeds = None,
    folds: options.Folds = None,
    only_fold: options.OnlyFold = None,
    group_by: options.GroupBy = None,
    train_on_all: options.TrainOnAll = False,
    tensorboard: options.TensorBoard = False,
) -> None:
    """Fine-tune the backbone and the head together. Run it again to go on where it stopped.

    On several machines: torchrun --nnodes … -m emi finetune …, or accelerate launch -m emi finetune ….
    """
    from emi.cli.media_notes import tell_notes
    from emi.cli.telling import Telling, say_labels
    from emi.cli.weights import tell_licence
    from emi.console import Progress
    from emi.finetuning import finetune as run_finetune
    from emi.finetuning.processes import first
    from emi.finetuning.start import resolve_with_head
    from train_head.data.label_format import label_columns
    from train_head.training.settings import read_assignments

    typed = {
        "freeze": freeze,
        "unfreeze_every": unfreeze_every,
        "backbone_lr": backbone_lr,
        "layer_decay": layer_decay,
        "lora": lora,
        "spec_augment": spec_augment,
        "layerdrop": layerdrop,
        "backbone_dropout": backbone_dropout,
        "head": head,
        "loss": loss,
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "batch_seconds": batch_seconds,
        "checkpointing": checkpointing,
        "processes": processes,
        "fsdp": fsdp,
        "max_seconds": max_seconds,
        "seed": seed,
        "precision": precision,
        "device": device,
        "label_scale": label_scale,
        "track": track,
        "allow_truncated": allow_truncated or None,
        "label_range": label_range,
    }
    speaks = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
    if speaks:
        tell_licence(backbone)
    settings, own = resolve_with_head(config, init_head, **(typed | read_assignments(more or ())))
    columns = label_columns(targets, rater, group_by)
    if speaks:
        say_labels(train, settings.label_format(columns))
    one = seeds is None and folds is None
    with (
        Telling(out, settings, several=not one or train_on_all, first_in_out=one, tensorboard=tensorboard) as telling,
        Progress(None, "decoding") as decoding,
    ):
        outcome = run_finetune(
            media,
            train,
            valid,
            out,
            settings,
            own,
            backbone=backbone,
            revision=revision,
            test=test,
            init_head=init_head,
            audio=audio,
            media_root=media_root,
            skip_missing=skip_missing,
            columns=columns,
            seeds=seeds,
            folds=folds,
            only_fold=only_fold,
            train_on_all=train_on_all,
            on_decode=decoding,
            on_notes=tell_notes,
            on_run=telling.on_run,
            on_epoch=telling,
            on_note=(lambda note: typer.echo(note, err=True)) if speaks else None,
        )
    if first():
        telling.outcome(outcome, "their media are missing or unreadable")
