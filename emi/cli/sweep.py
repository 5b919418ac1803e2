"""`emi sweep`: many heads on cached features, and the best few again."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from train_head.settings import TrainSettings
    from train_head.trainer import Record

EXAMPLE = (
    "Example: emi sweep --cache features.zarr --train train_split.csv --valid valid_split.csv "
    "--space configs/space.toml --trials 64 --out runs/sweep"
)


def sweep(
    cache: Annotated[str, typer.Option(help="Feature cache.")],
    train: Annotated[Path, typer.Option(help="Label CSV of the training split.")],
    valid: Annotated[Path, typer.Option(help="Label CSV by which trials are compared.")],
    space: Annotated[Path, typer.Option(help="TOML file of what is tried: lr = { log = [1e-5, 1e-2] }, for one.")],
    out: Annotated[Path, typer.Option(help="Run folder: trials.csv, best.toml, report.html, and the best runs.")],
    trials: Annotated[int, typer.Option(min=1, help="How many; give more later to add some.")] = 64,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes [default: one per core].")] = None,
    sampler: Annotated[str, typer.Option(help="tpe (learns from finished trials) or random.")] = "tpe",
    pruner: Annotated[
        str, typer.Option(help="Stops trials that lag behind: asha, hyperband, median or none.")
    ] = "asha",
    pool: Annotated[int, typer.Option(min=1, help="Trials see the mean of so many consecutive frames.")] = 1,
    pca: Annotated[
        int | None, typer.Option(min=1, help="Trials see so many principal components [default: all features].")
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=2, help="Trials train on so many clips, drawn once [default: all].")
    ] = None,
    top: Annotated[
        int, typer.Option(min=0, help="Train the best so many again, on all clips and the full features.")
    ] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="With so many seeds each.")] = 3,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that the space does not name.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of every trial: --set epochs=15; repeat."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampler and of every trial.")] = 0,
    storage: Annotated[
        str | None,
        typer.Option(help="postgresql://USER:PASSWORD@HOST/DATABASE, from which several machines take their trials."),
    ] = None,
    label_scale: Annotated[float | None, typer.Option(help="100 for labels from 0 to 100 [default: 1].")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Who speaks: label column, or regex on Filename. The splits then share no group."),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out labelled clips that the cache does not hold.")
    ] = False,
) -> None:
    """Try many heads, settings and losses, stop the poor ones early, and train the best few again with several seeds.

    Run it again to go on where it stopped. With --pool, --pca and --clips the trials see less, which makes them faster;
    the best few always see all.
    """
    from emi.console import TrialLines
    from train_head.progress import EpochLines
    from train_head.settings import read_assignments
    from train_head.sweep import SweepSettings, read_space
    from train_head.sweep import sweep as run

    found = read_space(space, config, **({"label_scale": label_scale} | read_assignments(more or ())))
    settings = SweepSettings(
        trials=trials,
        jobs=jobs,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        pool=pool,
        pca=pca,
        clips=clips,
        top=top,
        seeds=seeds,
        storage=storage,
    )
    epochs = EpochLines(0, typer.echo)

    def begin(name: str, own: "TrainSettings") -> None:
        nonlocal epochs
        epochs = EpochLines(own.stop_after or own.epochs, typer.echo)
        shown.close()
        typer.echo(f"{name}:")

    def show(record: "Record") -> None:
        epochs(record)

    with TrialLines(sys.stdout) as shown:
        result = run(
            cache,
            train,
            valid,
            out,
            found,
            settings,
            skip_missing=skip_missing,
            group_by=group_by,
            on_status=shown,
            on_run=begin,
            on_epoch=show,
        )
    if result.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished; give more --trials to go on")
    typer.echo(result.table())
    typer.echo(f"settings of the best: {out / 'best.toml'}; report: {out / 'report.html'}")
