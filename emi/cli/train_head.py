"""`emi train-head`: a head on cached features."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = (
    "Example: emi train-head --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/paper"
)


HEADS_HELP = (
    "lstm (the paper's), mean, mlp, gru, bilstm, attention, tcn, transformer, hierarchical or sequence [default: lstm]."
)
LOSSES_HELP = (
    'mse, mae, huber, pearson, ccc, balanced_mse, focal_r or zero_inflated, or a sum: "0.7*ccc + 0.3*mse" '
    "[default: mse]."
)


def train_head(
    cache: Annotated[list[str], typer.Option(help="Feature cache; repeat it for clips spread over several.")],
    train: Annotated[Path, typer.Option(help="Label CSV of the training split.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    valid: Annotated[
        Path | None, typer.Option(help="Label CSV by which the best epoch is chosen; with --folds, more clips to cut.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="CSV of a third split to predict; targets may be missing.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; the options below override it.")] = None,
    head: Annotated[str | None, typer.Option(help=HEADS_HELP)] = None,
    loss: Annotated[str | None, typer.Option(help=LOSSES_HELP)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [default: 1e-4].")] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: 30]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per step [default: 32].")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[default: 0.01]")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without improvement; 0 never [default: 0].")
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(help="Size of the LSTM's state; 0 takes the input's [default: 0].")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="LSTM layers [default: 2].")] = None,
    dropout: Annotated[float | None, typer.Option(help="Between LSTM layers [default: 0.1].")] = None,
    global_vector: Annotated[
        bool | None, typer.Option(help="Put the time mean of the input beside the last state [default: on].")
    ] = None,
    output: Annotated[str | None, typer.Option(help="linear, tanh or sigmoid [default: linear].")] = None,
    standardise: Annotated[
        bool | None, typer.Option(help="Bring features to mean 0, spread 1 over the training frames [default: off].")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of matrix products: fp32, bf16 or auto [default: auto].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto [default: auto].")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting, as in a TOML file: --set mixup=0.2; repeat."
        ),
    ] = None,
    label_scale: Annotated[float | None, typer.Option(help="100 for labels from 0 to 100 [default: 1].")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out labelled clips that no cache holds.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Train so many runs, from --seed on, in OUT/seed-0, …; OUT averages them.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cut the clips into so many folds, each predicted by a run that did not see it.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Who speaks: label column, or regex on Filename. Splits and folds then share no group."),
    ] = None,
    train_on_all: Annotated[
        bool, typer.Option("--train-on-all", help="Then train on all clips for the best epoch count, in OUT/all.")
    ] = False,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many epochs of the schedule of --epochs; 0 trains all.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write each epoch's figures into RUN/tensorboard too.")
    ] = False,
) -> None:
    """Train a head with the paper's settings, or yours. Run it again to go on where it stopped."""
    from emi.cli.telling import Telling
    from train_head.protocols import run_protocol
    from train_head.settings import read_assignments, resolve_settings

    typed = {
        "head": head,
        "loss": loss,
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "patience": patience,
        "hidden": hidden,
        "layers": layers,
        "dropout": dropout,
        "global_vector": global_vector,
        "output": output,
        "seed": seed,
        "label_scale": label_scale,
        "stop_after": stop_after,
        "standardise": standardise,
        "precision": precision,
        "device": device,
    }
    settings = resolve_settings(config, **(typed | read_assignments(more or ())))
    one = seeds is None and folds is None
    with Telling(out, settings, several=not one or train_on_all, first_in_out=one, tensorboard=tensorboard) as telling:
        outcome = run_protocol(
            cache,
            train,
            valid,
            out,
            settings,
            test=test,
            skip_missing=skip_missing,
            group_by=group_by,
            seeds=seeds,
            folds=folds,
            train_on_all=train_on_all,
            on_run=telling.on_run,
            on_epoch=telling.on_epoch,
        )
    telling.outcome(outcome, "no cache holds them")
