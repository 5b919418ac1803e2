"""`emi train-head`: a head on cached features."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from train_head.trainer import Record

EXAMPLE = (
    "Example: emi train-head --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/paper"
)


def train_head(
    cache: Annotated[list[str], typer.Option(help="Feature cache; repeat it for clips spread over several.")],
    train: Annotated[Path, typer.Option(help="Label CSV of the training split.")],
    valid: Annotated[Path, typer.Option(help="Label CSV by which the best epoch is chosen.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    test: Annotated[Path | None, typer.Option(help="CSV of a third split to predict; targets may be missing.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; the options below override it.")] = None,
    head: Annotated[str | None, typer.Option(help="lstm (the paper's) or mean [default: lstm].")] = None,
    loss: Annotated[str | None, typer.Option(help="mse, mae or huber [default: mse].")] = None,
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
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    label_scale: Annotated[float | None, typer.Option(help="100 for labels from 0 to 100 [default: 1].")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out labelled clips that no cache holds.")
    ] = False,
) -> None:
    """Train a head with the paper's settings, or yours. Run it again to go on where it stopped."""
    from train_head.settings import resolve_settings
    from train_head.train import train as run_training

    settings = resolve_settings(
        config,
        head=head,
        loss=loss,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        weight_decay=weight_decay,
        patience=patience,
        hidden=hidden,
        layers=layers,
        dropout=dropout,
        global_vector=global_vector,
        output=output,
        seed=seed,
        label_scale=label_scale,
    )
    started = time.monotonic()
    done_here = 0

    def show(record: "Record") -> None:
        nonlocal done_here
        done_here += 1
        left = (time.monotonic() - started) / done_here * (settings.epochs - record["epoch"])
        pearson = "undef" if record["valid_mean_pearson"] is None else f"{record['valid_mean_pearson']:.3f}"
        undefined = f"  (undefined: {', '.join(record['undefined'])})" if record["undefined"] else ""
        typer.echo(
            f"epoch {record['epoch']:>3}/{settings.epochs}  loss {record['train_loss']:.4f}  "
            f"pearson {pearson}{'*' if record['best'] else ' '} "
            f"{record['seconds']:.1f} s  {left:.0f} s left{undefined}"
        )

    result = run_training(cache, train, valid, out, settings, test=test, skip_missing=skip_missing, on_epoch=show)
    if result.resumed_at == len(result.history):
        typer.echo(f"nothing to do: {out} is finished")
    if result.skipped:
        typer.echo(f"{result.skipped} labelled clips were left out because no cache holds them", err=True)
    typer.echo(f"validation, best epoch {result.best_epoch}:\n{result.report.table()}")
    if result.test_report:
        typer.echo(f"test:\n{result.test_report.table()}")
    typer.echo(f"run folder: {out}")
