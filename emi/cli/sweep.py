"""`emi sweep`: many heads on cached features, and the best few again."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.settings import take
from emi.cli import options
from train_head.sweep.settings import SweepSettings
from train_head.training.settings import TrainSettings

if TYPE_CHECKING:
    from train_head.sweep.trials import Status


@options.takes(
    (SweepSettings, "trials jobs sampler pruner pool pca clips top seeds seed storage"),
    (TrainSettings, "label_fps"),
    *options.LABELS,
)
def sweep(
    cache: Annotated[list[str], typer.Option(help="Feature cache; of several streams one each, as NAME=PATH.")],
    train: options.Train,
    valid: options.Valid,
    space: Annotated[
        Path, typer.Option(help="TOML file of the settings to search, such as lr = { log = [1e-5, 1e-2] }.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder: trials.csv, best.toml, report.html, and the best runs.")],
    *,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that the space does not name.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of every trial: --set epochs=15; repeat."),
    ] = None,
    skip_missing: options.SkipUncached = False,
    require: options.Require = None,
    ids: options.Ids = None,
    given: options.Given,
) -> None:
    """Try many heads, settings and losses, stop the poor ones early, and train the best few again with several seeds.

    Run it again to resume where it stopped. With --pool, --pca and --clips the trials see less, which makes them
    faster; the best few always see all.

    Example: emi sweep --cache features.zarr --train train_split.csv --valid valid_split.csv --space configs/space.toml
    --trials 64 --out runs/sweep
    """
    from emi.cli.training_output import TrainingOutput, label_files, print_table
    from emi.console import MOMENT, Progress, TrialLines
    from train_head.sweep.space import read_space
    from train_head.sweep.sweep import sweep as run
    from train_head.training.settings import read_assignments

    settings = take(SweepSettings, given)
    columns, validation = options.label_settings(given)
    found = read_space(space, config, **(given | read_assignments(more or ())))
    form = found.settings({}).label_format(columns, validation)
    files = label_files(train, valid, form=form, skip_missing=skip_missing, require=require, ids=ids)

    class Output(TrainingOutput):
        def note(self, text: str) -> None:
            deriving.close()
            super().note(text)

        def run_started(self, name: str, folder: Path, settings: TrainSettings) -> None:
            shown.close()
            super().run_started(name, folder, settings)

    def show(status: "Status") -> None:
        deriving.close()
        shown(status)

    with Progress(after=MOMENT) as deriving, TrialLines(sys.stdout) as shown:
        result = run(cache, files, out, found, settings, on_derive=deriving.stage, on_status=show, reporter=Output())
    print_table(result, out, "; give more --trials to add some")
    streams = f" (of the streams {' and '.join(result.best_streams)})" if result.best_streams else ""
    typer.echo(f"settings of the best{streams}: {out / 'best.toml'}; report: {out / 'report.html'}")
