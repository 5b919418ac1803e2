"""`emi train-head`: a head on cached features."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options


@options.takes(*options.TRAINING)
def train_head(
    cache: options.Caches,
    train: options.Train,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    *,
    valid: options.BestEpochValid = None,
    test: options.Test = None,
    config: options.Config = None,
    more: options.Settings = None,
    skip_missing: options.SkipUncached = False,
    require: options.Require = None,
    ids: options.Ids = None,
    tracker: options.TrackerOfHead = None,
    tensorboard: options.TensorBoard = False,
    given: options.Given,
) -> None:
    """Train a head with the paper's settings, or yours. Run it again to resume where it stopped.

    Example: emi train-head --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/paper
    """
    from emi.cli.training_output import TrainingOutput, label_files, left_out, print_outcome
    from train_head.protocols import train as run
    from train_head.reports.trackers import Trackers
    from train_head.runs.inputs import gather_inputs
    from train_head.training.settings import read_assignments, resolve_settings

    columns, validation = options.label_settings(given)
    settings = resolve_settings(config, **(given | read_assignments(more or ())))
    validation.check_split(valid)
    form = settings.label_format(columns, validation)
    files = label_files(train, valid, test, form=form, skip_missing=skip_missing, require=require, ids=ids)
    with Trackers(out, [*(tracker or ()), *["tensorboard"] * tensorboard]) as trackers:
        outcome = run(gather_inputs(cache, files), out, settings, validation, TrainingOutput(trackers=trackers))
    print_outcome(outcome, out, left_out(require))
