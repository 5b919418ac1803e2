"""`emi train-head`: a head on cached features."""

from pathlib import Path
from typing import Annotated

import typer

from cache.settings import take
from emi.cli import options
from train_head.data.label_format import LabelColumns
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

EXAMPLE = (
    "Example: emi train-head --cache features.zarr --train train_split.csv --valid valid_split.csv --out runs/paper"
)


@options.takes(TrainSettings, options.HeadOptions, LabelColumns, Validation)
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
    tracker: options.TrackerOfHead = None,
    tensorboard: options.TensorBoard = False,
    given: options.Given,
) -> None:
    """Train a head with the paper's settings, or yours. Run it again to resume where it stopped."""
    from emi.cli.training_output import TrainingOutput, print_labels, print_outcome
    from train_head.protocols import train as run
    from train_head.reports.trackers import Trackers
    from train_head.runs.inputs import LabelFiles, gather_inputs
    from train_head.training.settings import read_assignments, resolve_settings

    columns, validation = take(LabelColumns, given), take(Validation, given)
    settings = resolve_settings(config, **(given | read_assignments(more or ())))
    validation.check_split(valid)
    form = settings.label_format(columns, validation)
    label_files = LabelFiles.named(train, valid, test, format=form, skip_missing=skip_missing)
    print_labels(label_files)
    with Trackers(out, [*(tracker or ()), *["tensorboard"] * tensorboard]) as trackers:
        inputs = gather_inputs(cache, label_files)
        outcome = run(inputs, out, settings, validation, TrainingOutput(trackers=trackers))
    print_outcome(outcome, out, "no cache holds them")
