"""From inputs to a finished protocol: one run, several seeds, folds, or training on all clips."""

from dataclasses import dataclass, replace
from pathlib import Path

from cache.paths import StrPath
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.protocols.folds import train_folds
from train_head.protocols.on_all import ALL, AllResult, train_on_all, train_seeds_on_all
from train_head.protocols.pool import pool
from train_head.protocols.result import ProtocolResult, finish, listed_members, prepare_protocol, write_mean
from train_head.runs.inputs import Inputs, check_disjoint_splits
from train_head.runs.train import TrainResult, train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

CHOSEN = (
    "Each run's best epoch was chosen on the validation clips, so the validation figures are optimistic for new ones."
)


@dataclass(frozen=True)
class Outcome:
    """What was made.

    Attributes:
        result: of one run, or of several.
        on_all: of the training on all clips, where it was asked for.
        missing_folds: of a single fold that was trained, the others that are not finished yet.
    """

    result: TrainResult | ProtocolResult
    on_all: AllResult | None = None
    missing_folds: tuple[int, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was finished before."""
        if self.on_all is not None and self.on_all.epochs_trained:
            return False
        if isinstance(self.result, ProtocolResult):
            return self.result.nothing_to_do
        return self.result.resumed_at == len(self.result.history)


def train(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    validation: Validation | None = None,
    reporter: Reporter = SILENT,
) -> Outcome:
    """Train one run, or several by a protocol; called again it resumes.

    Args:
        inputs: with the splits that the protocol needs.
        out: run folder, or the folder of the runs.
        settings: how to train.
        validation: how many runs, and on which clips each is validated.
        reporter: hears of runs, epochs and steps.

    Raises:
        TrainSettingsError: these do not go together.
        LabelError, RunFolderError: before anything was written.
        DivergedError: the loss is not finite.
    """
    validation = validation or Validation()
    validation.check_split(inputs.splits.get("valid"))
    if validation.group_by not in (None, inputs.label_files.format.group_by):
        raise TrainSettingsError(
            f"the labels were read without the groups of {validation.group_by!r}; give it to `label_format` too"
        )
    if validation.folds is not None:
        folds, missing = train_folds(inputs, out, settings, validation.folds, reporter, only=validation.only_fold)
        return Outcome(folds, missing_folds=missing)
    if validation.on_all:
        pool(inputs)  # refuses clips that are in both splits, before anything is trained
    if validation.seeds is not None:
        seeds = train_seeds(inputs, out, settings, validation.seeds, reporter)
        return Outcome(seeds, train_seeds_on_all(inputs, seeds, settings, reporter) if validation.on_all else None)
    check_disjoint_splits(inputs.labels)
    folder = Path(out)
    reporter.run_started(folder.name if validation.on_all else "", folder, settings)
    result = train_run(inputs, folder, settings, reporter=reporter)
    if not validation.on_all:
        return Outcome(result)
    reporter.run_started(ALL, folder / ALL, replace(settings, stop_after=result.best_epoch))
    return Outcome(result, train_on_all(inputs, folder / ALL, settings, result.best_epoch, reporter)[0])


def train_seeds(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    seeds: int,
    reporter: Reporter = SILENT,
    *,
    reported_under: str = "",
) -> ProtocolResult:
    """Train one run per seed into out/seed-0, out/seed-1, …; called again it resumes, or adds the missing ones.

    Args:
        inputs: with the splits "train" and "valid", perhaps "test".
        out: folder of the runs; gets predictions_valid.csv (and _test), the means of theirs, summary.json, README.md
            and ensemble.toml, which lists them once all are finished.
        settings: of every run, but for the seed, which is `settings.seed` + the run's number.
        seeds: number of runs.
        reporter: hears of runs, epochs and steps.
        reported_under: what precedes the names of the runs that it hears.

    Raises:
        TrainSettingsError: fewer than one seed.
        RunFolderError: the folder holds something else, or more seeds.
        LabelError: training and validation share a group.
    """
    if seeds < 1:
        raise TrainSettingsError(f"seeds must be 1 or more, got {seeds}")
    settings, folder = settings.on_this_machine(), Path(out)
    check_disjoint_splits(inputs.labels)
    prepare_protocol(folder, settings, inputs, {"kind": "seeds"})
    before = listed_members(folder)
    if len(before) > seeds:
        raise RunFolderError(f"{folder} holds {len(before)} seeds already, got {seeds}; ask for as many or more")
    results = []
    for i in range(seeds):
        name = f"seed-{i}"
        of_run = replace(settings, seed=settings.seed + i)
        reporter.run_started(f"{reported_under}{name}", folder / name, of_run)
        part = replace(inputs, protocol={"kind": "seed", "number": i})
        results.append(train_run(part, folder / name, of_run, reporter=reporter))
    splits = inputs.splits
    predictions = [result.predictions["valid"] for result in results]
    valid = write_mean(folder, "valid", predictions, splits["valid"].labels, splits["train"].labels)
    assert valid is not None
    return finish(
        folder,
        "seeds",
        inputs,
        settings,
        results,
        valid=valid,
        labels=splits["valid"].labels,
        train=splits["train"].labels,
        notes=(CHOSEN, *([f"{inputs.overlap}."] if inputs.overlap else [])),
        before=before,
    )
