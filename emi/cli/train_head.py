"""`emi train-head`: a head on cached features."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options

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
    cache: options.Caches,
    train: options.Train,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    valid: options.BestEpochValid = None,
    test: options.Test = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; the options below override it.")] = None,
    head: Annotated[str | None, typer.Option(help=HEADS_HELP)] = None,
    loss: Annotated[str | None, typer.Option(help=LOSSES_HELP)] = None,
    lr: options.Lr = None,
    epochs: options.Epochs = None,
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
    seed: options.Seed = None,
    precision: Annotated[
        str | None, typer.Option(help="Of matrix products: fp32, bf16 or auto [default: auto].")
    ] = None,
    device: options.Device = None,
    more: options.Settings = None,
    label_scale: options.LabelScale = None,
    label_range: options.LabelRange = None,
    targets: options.Targets = None,
    rater: options.Rater = None,
    skip_missing: options.SkipUncached = False,
    seeds: options.Seeds = None,
    folds: options.Folds = None,
    only_fold: options.OnlyFold = None,
    group_by: options.GroupBy = None,
    train_on_all: options.TrainOnAll = False,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many epochs of the schedule of --epochs; 0 trains all.")
    ] = None,
    tensorboard: options.TensorBoard = False,
) -> None:
    """Train a head with the paper's settings, or yours. Run it again to go on where it stopped."""
    from emi.cli.telling import Telling, say_labels
    from train_head.data.label_format import label_columns
    from train_head.protocols import run_protocol
    from train_head.training.settings import read_assignments, resolve_settings

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
        "label_range": label_range,
        "stop_after": stop_after,
        "standardise": standardise,
        "precision": precision,
        "device": device,
    }
    settings = resolve_settings(config, **(typed | read_assignments(more or ())))
    columns = label_columns(targets, rater, group_by)
    say_labels(train, settings.label_format(columns))
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
            columns=columns,
            seeds=seeds,
            folds=folds,
            only_fold=only_fold,
            train_on_all=train_on_all,
            on_run=telling.on_run,
            on_epoch=telling,
        )
    telling.outcome(outcome, "no cache holds them")
