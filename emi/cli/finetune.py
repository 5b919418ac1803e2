"""`emi finetune`: backbone and head in one graph."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = (
    "Example: emi finetune --media clips/ --train train_split.csv --valid valid_split.csv --backbone "
    "facebook/wav2vec2-base --init-head runs/head --out runs/ft"
)


def finetune(
    media: Annotated[str, typer.Option(help="Folder of the media, a CSV with a Filename column, or a text list.")],
    train: Annotated[Path, typer.Option(help="Label CSV of the training split.")],
    out: Annotated[Path, typer.Option(help="Run folder; once finished, a backbone for emi extract as well.")],
    backbone: Annotated[str, typer.Option(help="silero, a Hugging Face id, or a local folder.")],
    valid: Annotated[
        Path | None, typer.Option(help="Label CSV by which the best epoch is chosen; with --folds, more clips to cut.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="CSV of a third split to predict; targets may be missing.")] = None,
    init_head: Annotated[
        Path | None, typer.Option(help="Run folder of a head trained on this backbone's cache, to start from.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, those of the backbone in [finetune].")
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(help="What never learns: none, cnn, layers:N (and all below) or backbone [default: cnn]."),
    ] = None,
    unfreeze_every: Annotated[
        int | None,
        typer.Option(help="The head learns alone for so many epochs, then one layer more each; 0 all [default: 0]."),
    ] = None,
    backbone_lr: Annotated[float | None, typer.Option(help="Its peak learning rate [default: 1e-5].")] = None,
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
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the head [default: 1e-4].")] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: 30]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per step, on all devices [default: 32].")] = None,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Audio on a device at once: memory; 0 chooses [default: 0].")
    ] = None,
    checkpointing: Annotated[
        bool | None, typer.Option(help="Less memory for more time: compute activations twice [default: off].")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Kept of each clip [default: 12].")] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of matrix products: fp32, bf16, fp16 or auto [default: auto].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto [default: auto].")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting, as in a TOML file: --set noise_snr=10; repeat."
        ),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the decoded audio, which runs may share [default: OUT-audio].")
    ] = None,
    media_root: Annotated[Path | None, typer.Option(help="Where the paths of a CSV or list start.")] = None,
    label_scale: Annotated[float | None, typer.Option(help="100 for labels from 0 to 100 [default: 1].")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out labelled clips whose media are missing or unreadable.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Train so many runs, from --seed on, in OUT/seed-0, ….")] = None,
    folds: Annotated[int | None, typer.Option(help="Cut the clips into so many folds, one run each.")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Who speaks: label column, or regex on Filename. Splits and folds then share no group."),
    ] = None,
    train_on_all: Annotated[
        bool, typer.Option("--train-on-all", help="Then train on all clips for the best epoch count, in OUT/all.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write each epoch's figures into RUN/tensorboard too.")
    ] = False,
) -> None:
    """Fine-tune the backbone and the head together. Run it again to go on where it stopped.

    On several devices: torchrun --nproc-per-node 2 -m emi finetune …, or accelerate launch -m emi finetune ….
    """
    from emi.cli.telling import Telling
    from emi.console import Progress
    from emi.end_to_end import finetune as run_finetune
    from emi.end_to_end.processes import first
    from emi.end_to_end.start import resolve_with_head
    from train_head.settings import read_assignments

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
        "max_seconds": max_seconds,
        "seed": seed,
        "precision": precision,
        "device": device,
        "label_scale": label_scale,
    }
    settings, own = resolve_with_head(config, init_head, **(typed | read_assignments(more or ())))
    one = seeds is None and folds is None
    with (
        Telling(out, settings, several=not one or train_on_all, first_in_out=one, tensorboard=tensorboard) as telling,
        Progress(None, "decode") as decoding,
    ):
        outcome = run_finetune(
            media,
            train,
            valid,
            out,
            settings,
            own,
            backbone=backbone,
            test=test,
            init_head=init_head,
            audio=audio,
            media_root=media_root,
            skip_missing=skip_missing,
            group_by=group_by,
            seeds=seeds,
            folds=folds,
            train_on_all=train_on_all,
            on_decode=decoding,
            on_run=telling.on_run,
            on_epoch=telling.on_epoch,
        )
    if first():
        telling.outcome(outcome, "their media are missing or unreadable")
