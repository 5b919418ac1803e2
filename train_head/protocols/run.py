"""From inputs to a finished protocol: one run, several seeds, folds, or training on all clips."""

from dataclasses import dataclass
from pathlib import Path

from cache.paths import StrPath
from train_head.errors import TrainSettingsError
from train_head.protocols.folds import train_folds, train_one_fold
from train_head.protocols.on_all import AllResult, train_one_and_all, train_seeds_on_all
from train_head.protocols.pool import pool
from train_head.protocols.result import ProtocolResult
from train_head.protocols.seeds import train_seeds
from train_head.runs.inputs import Inputs
from train_head.runs.result import TrainResult
from train_head.runs.train import train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings
from train_head.validation import Validation


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
    if validation.folds is not None and validation.only_fold is not None:
        fold = train_one_fold(inputs, out, settings, validation.folds, validation.only_fold, reporter)
        return Outcome(fold.together or fold.result, missing_folds=fold.missing)
    if validation.folds is not None:
        return Outcome(train_folds(inputs, out, settings, validation.folds, reporter))
    if validation.on_all:
        pool(inputs)  # refuses clips that are in both splits, before anything is trained
    if validation.seeds is None:
        inputs.check_groups()
        if validation.on_all:
            return Outcome(*train_one_and_all(inputs, out, settings, reporter))
        reporter.run_started("", Path(out), settings)
        return Outcome(train_run(inputs, out, settings, reporter=reporter))
    result = train_seeds(inputs, out, settings, validation.seeds, reporter)
    if not validation.on_all:
        return Outcome(result)
    return Outcome(result, train_seeds_on_all(inputs, result, settings, reporter))
