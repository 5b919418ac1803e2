"""`emi sweep`: many heads on cached features, and the best few again."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.settings import take
from emi.cli import options
from train_head.data.label_format import LabelColumns
from train_head.sweep.settings import SweepSettings
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

if TYPE_CHECKING:
    from train_head.sweep.trials import Status

EXAMPLE = (
    "Example: emi sweep --cache features.zarr --train train_split.csv --valid valid_split.csv "
    "--space configs/space.toml --trials 64 --out runs/sweep"
)


@options.takes(
    TrainSettings,
    LabelColumns,
    Validation,
    SweepSettings,
    only="trials jobs sampler pruner pool pca clips top seeds seed storage label_scale label_range targets rater "
    "group_by",
    group_by="What names the speaker: a label column, or a regular expression on Filename. Splits share no group.",
)
def sweep(
    cache: Annotated[str, typer.Option(help="Feature cache.")],
    train: options.Train,
    valid: options.Valid,
    space: Annotated[Path, typer.Option(help="TOML file of what is tried: lr = { log = [1e-5, 1e-2] }, for one.")],
    out: Annotated[Path, typer.Option(help="Run folder: trials.csv, best.toml, report.html, and the best runs.")],
    *,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings that the space does not name.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of every trial: --set epochs=15; repeat."),
    ] = None,
    skip_missing: options.SkipUncached = False,
    given: options.Given,
) -> None:
    """Try many heads, settings and losses, stop the poor ones early, and train the best few again with several seeds.

    Run it again to resume where it stopped. With --pool, --pca and --clips the trials see less, which makes them
    faster; the best few always see all.
    """
    from emi.cli.training_output import TrainingOutput, print_labels
    from emi.console import Stages, TrialLines
    from train_head.runs.inputs import LabelFiles
    from train_head.sweep.space import read_space
    from train_head.sweep.sweep import sweep as run
    from train_head.training.settings import read_assignments

    settings, columns, validation = take(SweepSettings, given), take(LabelColumns, given), take(Validation, given)
    found = read_space(space, config, **(given | read_assignments(more or ())))
    form = found.settings({}).label_format(columns, validation)
    label_files = LabelFiles.named(train, valid, format=form, skip_missing=skip_missing)
    print_labels(label_files)

    class Output(TrainingOutput):
        def run_started(self, name: str, folder: Path, settings: TrainSettings) -> None:
            shown.close()
            super().run_started(name, folder, settings)

    def show(status: "Status") -> None:
        deriving.close()
        shown(status)

    with Stages() as deriving, TrialLines(sys.stdout) as shown:
        result = run(cache, label_files, out, found, settings, on_derive=deriving, on_status=show, reporter=Output())
    if result.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished; give more --trials to add some")
    typer.echo(result.table())
    typer.echo(f"settings of the best: {out / 'best.toml'}; report: {out / 'report.html'}")
