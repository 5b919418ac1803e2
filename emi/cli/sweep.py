"""`emi sweep`: many heads on cached features, and the best few again."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emi.cli import options

if TYPE_CHECKING:
    from train_head.sweep import Status
    from train_head.training.settings import TrainSettings

EXAMPLE = (
    "Example: emi sweep --cache features.zarr --train train_split.csv --valid valid_split.csv "
    "--space configs/space.toml --trials 64 --out runs/sweep"
)


def sweep(
    cache: Annotated[str, typer.Option(help="Feature cache.")],
    train: options.Train,
    valid: options.Valid,
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
    label_scale: options.LabelScale = None,
    label_range: options.LabelRange = None,
    targets: options.Targets = None,
    rater: options.Rater = None,
    group_by: Annotated[
        str | None, typer.Option(help="What names the speaker: label column, or regex on Filename.")
    ] = None,
    skip_missing: options.SkipUncached = False,
) -> None:
    """Try many heads, settings and losses, stop the poor ones early, and train the best few again with several seeds.

    Run it again to go on where it stopped. With --pool, --pca and --clips the trials see less, which makes them faster;
    the best few always see all.
    """
    from emi.cli.training_output import TrainingOutput, print_labels
    from emi.console import Stages, TrialLines
    from train_head.data.label_format import LabelColumns, parse_targets
    from train_head.runs.inputs import LabelFiles
    from train_head.sweep import SweepSettings, read_space
    from train_head.sweep import sweep as run
    from train_head.training.settings import read_assignments
    from train_head.validation import Validation

    found = read_space(
        space, config, **({"label_scale": label_scale, "label_range": label_range} | read_assignments(more or ()))
    )
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
    columns = LabelColumns(targets=parse_targets(targets), rater=rater)
    form = found.settings({}).label_format(columns, Validation(group_by=group_by))
    label_files = LabelFiles.named(train, valid, format=form, skip_missing=skip_missing)
    print_labels(label_files)

    class Output(TrainingOutput):
        def run_started(self, name: str, folder: Path, settings: "TrainSettings") -> None:
            shown.close()
            super().run_started(name, folder, settings)

    def show(status: "Status") -> None:
        deriving.close()
        shown(status)

    with Stages() as deriving, TrialLines(sys.stdout) as shown:
        result = run(cache, label_files, out, found, settings, on_derive=deriving, on_status=show, reporter=Output())
    if result.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished; give more --trials to go on")
    typer.echo(result.table())
    typer.echo(f"settings of the best: {out / 'best.toml'}; report: {out / 'report.html'}")
