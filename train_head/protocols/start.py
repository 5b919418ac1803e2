"""From label files to a finished protocol: what the command line and `emi.train_head` call."""

from collections.abc import Sequence
from dataclasses import dataclass

from cache.paths import StrPath
from train_head.data.label_format import LabelColumns
from train_head.errors import TrainSettingsError
from train_head.protocols.everything import AllResult, train_everything, train_seeds_on_all
from train_head.protocols.folds import train_folds, train_one_fold
from train_head.protocols.members import OnRun
from train_head.protocols.pool import pool
from train_head.protocols.result import ProtocolResult
from train_head.protocols.seeds import train_seeds
from train_head.runs.train import Inputs, TrainResult, check_groups, gather_inputs, train_run
from train_head.training.settings import TrainSettings
from train_head.training.trainer import OnEpoch


@dataclass(frozen=True)
class Outcome:
    """What was made.

    Attributes:
        result: of one run, or of several.
        everything: of the training on all clips, where it was asked for.
        missing_folds: of a single fold that was trained, the others that are not finished yet.
    """

    result: TrainResult | ProtocolResult
    everything: AllResult | None = None
    missing_folds: tuple[int, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was finished before."""
        if self.everything is not None and self.everything.epochs_trained:
            return False
        if isinstance(self.result, ProtocolResult):
            return self.result.nothing_to_do
        return self.result.resumed_at == len(self.result.history)


def run_protocol(
    caches: StrPath | Sequence[StrPath],
    train: StrPath,
    valid: StrPath | None,
    out: StrPath,
    settings: TrainSettings | None = None,
    *,
    test: StrPath | None = None,
    skip_missing: bool = False,
    columns: LabelColumns | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    only_fold: int | None = None,
    train_on_all: bool = False,
    on_run: OnRun | None = None,
    on_epoch: OnEpoch | None = None,
) -> Outcome:
    """Train one run, or several by a protocol, on features that are loaded once; called again it goes on.

    Args:
        caches: one cache, or several with equal fingerprints that together hold the clips.
        train: label CSV of the training split.
        valid: label CSV by which the best epoch is chosen; with folds, more clips to cut, or None.
        out: run folder, or the folder of the runs.
        settings: how to train; the paper's settings by default.
        test: CSV of a third split to predict; its targets may be missing.
        skip_missing: leave out clips that no cache holds instead of refusing.
        columns: which columns of the label files mean what. With groups, splits or folds share none, and intervals
            resample groups.
        seeds: see `train_seeds`.
        folds: see `train_folds`.
        only_fold: train this one of the folds, from 0; see `train_one_fold`.
        train_on_all: see `train_everything`; with seeds, `train_seeds_on_all`.
        on_run: called before each of several runs.
        on_epoch: called with each epoch's record.

    Raises:
        TrainSettingsError: these do not go together.
        LabelError, RunFolderError, CacheError: before anything was written.
        DivergedError: the loss is not finite.
    """
    check_protocol(valid is not None, seeds, folds, train_on_all, only_fold)
    settings = settings or TrainSettings()
    named = {"train": train, "valid": valid, "test": test}
    files = {name: path for name, path in named.items() if path is not None}
    inputs = gather_inputs(caches, files, settings.label_format(columns), skip_missing=skip_missing)
    return run_on(
        inputs,
        out,
        settings,
        seeds=seeds,
        folds=folds,
        only_fold=only_fold,
        train_on_all=train_on_all,
        on_run=on_run,
        on_epoch=on_epoch,
    )


def run_on(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    only_fold: int | None = None,
    train_on_all: bool = False,
    on_run: OnRun | None = None,
    on_epoch: OnEpoch | None = None,
) -> Outcome:
    """The same on inputs that are at hand; see `run_protocol`."""
    if folds is not None and only_fold is not None:
        one = train_one_fold(inputs, out, settings, folds, only_fold, on_run=on_run, on_epoch=on_epoch)
        return Outcome(one.together or one.result, missing_folds=one.missing)
    if folds is not None:
        return Outcome(train_folds(inputs, out, settings, folds, on_run=on_run, on_epoch=on_epoch))
    if train_on_all:
        pool(inputs)
    if seeds is not None:
        result = train_seeds(inputs, out, settings, seeds, on_run=on_run, on_epoch=on_epoch)
        if not train_on_all:
            return Outcome(result)
        return Outcome(result, train_seeds_on_all(inputs, result, settings, on_run=on_run, on_epoch=on_epoch))
    if train_on_all:
        return Outcome(*train_everything(inputs, out, settings, on_run=on_run, on_epoch=on_epoch))
    check_groups(inputs.labels)
    return Outcome(train_run(inputs, out, settings, on_epoch=on_epoch))


def check_protocol(
    valid: bool, seeds: int | None, folds: int | None, train_on_all: bool, only_fold: int | None = None
) -> None:
    """Refuse what does not go together.

    Raises:
        TrainSettingsError: says what to leave out, or to give.
    """
    if only_fold is not None and folds is None:
        raise TrainSettingsError(f"--only-fold {only_fold} is one of --folds N; give their number too")
    if only_fold is not None and folds is not None and not 0 <= only_fold < folds:
        raise TrainSettingsError(
            f"--only-fold takes 0 to {folds - 1}, as the folders of {folds} folds are called (fold-0, …), got "
            f"{only_fold}"
        )
    if folds is not None and seeds is not None:
        raise TrainSettingsError("--seeds and --folds do not go together: the folds are one seed each; leave one out")
    if folds is not None and train_on_all:
        raise TrainSettingsError(
            "--train-on-all takes the best epoch of one validation split, and folds have none in common; leave out "
            "--folds or --train-on-all"
        )
    if folds is None and not valid:
        raise TrainSettingsError("there is no validation split; give --valid CSV, or --folds N to validate on --train")
