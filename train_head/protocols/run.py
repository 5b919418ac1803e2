"""From inputs to a finished protocol: one run, several seeds, folds, or training on all clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.label_format import range_text
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.evaluation.metrics import Report
from train_head.protocols.folds import train_folds
from train_head.protocols.pool import pool, trainable
from train_head.protocols.result import (
    ProtocolResult,
    Scored,
    finish,
    listed_members,
    prepare_protocol,
    write_ensemble,
    write_mean,
)
from train_head.reports.usage import usage_of
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs, backbones, check_disjoint_splits, licence_text
from train_head.runs.result import Predictions, TrainResult
from train_head.runs.smoothing import read_smoothing
from train_head.runs.train import fit, predict_splits, run_config, score_splits, train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

ALL = "all"
CHOSEN = (
    "Each run's best epoch was chosen on the validation clips, so the validation figures are optimistic for new ones."
)


@dataclass(frozen=True, kw_only=True)
class AllResult:
    """A run on training and validation clips, or the mean of several.

    Attributes:
        folder: its folder.
        epochs: number of epochs of each run.
        test_report: metrics on the test split, where one with targets was given.
        epochs_trained: in this call.
    """

    folder: Path
    epochs: tuple[int, ...]
    test_report: Report | None
    epochs_trained: int


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
    for sentence in inputs.lacking:
        reporter.note(sentence)
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
        of_run, part = (
            replace(settings, seed=settings.seed + i),
            replace(inputs, protocol={"kind": "seed", "number": i}),
        )
        reporter.run_started(f"{reported_under}{name}", folder / name, of_run)
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
        notes=(CHOSEN, *(f"{sentence}." for sentence in [*inputs.lacking, inputs.overlap] if sentence)),
        before=before,
    )


def train_seeds_on_all(
    inputs: Inputs, seeds: ProtocolResult, settings: TrainSettings, reporter: Reporter = SILENT
) -> AllResult:
    """Train each seed on all clips, in seed-0/all, …; their mean is the ensemble in OUT/all.

    Args:
        inputs: as for the seeds.
        seeds: the finished runs.
        settings: as for the seeds.
        reporter: hears of runs, epochs and steps.

    Raises:
        LabelError, RunFolderError: as `train_on_all`.
    """
    settings, folder = settings.on_this_machine(), seeds.folder / ALL
    prepare_protocol(folder, settings, inputs, {"kind": ALL})
    trained = []
    for i, (name, epochs) in enumerate(zip(seeds.members, seeds.best_epochs, strict=True)):
        of_run = replace(settings, seed=settings.seed + i)
        place = seeds.folder / name / ALL
        reporter.run_started(f"{name}/{ALL}", place, replace(of_run, stop_after=epochs))
        trained.append(train_on_all(inputs, place, of_run, epochs, reporter))
    members = [f"../{name}/{ALL}" for name in seeds.members]
    test = inputs.splits.get("test")
    tested = [predicted["test"] for _, predicted in trained] if test is not None else []
    scored = write_mean(folder, "test", tested, test.labels, pool(inputs).labels) if test is not None else None
    card = _ensemble_card(inputs, settings, members, seeds.best_epochs, scored)
    write_atomically(folder / run_folder.CARD, card.encode())
    write_ensemble(folder, ALL, members)
    return AllResult(
        folder=folder,
        epochs=seeds.best_epochs,
        test_report=scored.report if scored else None,
        epochs_trained=sum(result.epochs_trained for result, _ in trained),
    )


def train_on_all(
    inputs: Inputs, folder: Path, settings: TrainSettings, epochs: int, reporter: Reporter
) -> tuple[AllResult, Predictions]:
    """Train one run on the clips of "train" and "valid"; there is no validation, and the last epoch is kept.

    Args:
        inputs: "test" is predicted where given.
        folder: run folder, within that of a run with validation, whose smoothing it takes over.
        settings: the learning rate is that of `settings.epochs`, as in the run whose best epoch is repeated.
        epochs: stop after this many.
        reporter: hears of epochs and steps.

    Raises:
        LabelError: a clip is in both splits.
        RunFolderError: the folder holds another run.
    """
    settings = replace(settings.on_this_machine(), stop_after=epochs)
    splits = {"train": trainable(pool(inputs))} | {name: s for name, s in inputs.splits.items() if name == "test"}
    labels = {name: split.labels for name, split in splits.items()}
    on_all = replace(inputs, splits=splits, labels=labels, protocol={"kind": ALL})
    run_folder.prepare_folder(folder, run_config(settings, on_all))
    smoothing = read_smoothing(folder.parent)
    if smoothing is not None:
        replace(smoothing, scores={}).write(folder)
    loop, before = fit(on_all, folder, settings, None, reporter)
    predictions = predict_splits(loop, splits, folder)
    report = score_splits(splits, predictions).get("test")
    write_atomically(folder / run_folder.CARD, _card(inputs, settings, report).encode())
    done = len(loop.history) - before
    return AllResult(folder=folder, epochs=(epochs,), test_report=report, epochs_trained=done), predictions


def _clips(inputs: Inputs) -> str:
    train, valid = len(inputs.splits["train"]), len(inputs.splits["valid"])
    return f"{train + valid} clips: {train} training and {valid} validation clips"


def _use(inputs: Inputs, settings: TrainSettings) -> str:
    return f"""## Use

{usage_of(inputs, settings)}

Intensities describe how strongly an emotion is *shown*; they say nothing about what a person feels.
"""


def _card(inputs: Inputs, settings: TrainSettings, report: Report | None) -> str:
    labels, scale = inputs.labels["train"], range_text(settings.label_range)
    test = f"\n## Test\n\n```\n{report.table()}\n```\n" if report else ""
    return f"""# Head `{settings.head}` for {", ".join(labels.names)}, trained on all clips

Predicts values in {scale} of {labels.targets.each} from features of {backbones(inputs)}.
Trained on all {_clips(inputs)}.

**There is no validation:** all labelled clips were trained on, so no figure here says how well this head does on
others; that of the run in the folder above is the nearest.

Trained for {settings.stop_after} epochs, the number that was best there, with the learning rate of {settings.epochs};
the last epoch is kept. Loss `{settings.loss}`, seed {settings.seed}; all settings are in `config.toml`.
{test}
{_use(inputs, settings)}
{licence_text(inputs)}
"""


def _ensemble_card(
    inputs: Inputs, settings: TrainSettings, members: Sequence[str], epochs: Sequence[int], scored: Scored | None
) -> str:
    rows = "\n".join(f"| [{name}]({name}/README.md) | {n} |" for name, n in zip(members, epochs, strict=True))
    test = f"\n## Test\n\n```\n{scored.table()}\n```\n" if scored else ""
    return f"""# Mean of {len(members)} heads for {", ".join(inputs.labels["train"].names)}, trained on all clips

Each was trained on all {_clips(inputs)}.

**There is no validation:** all labelled clips were trained on; the figures of the seeds in the folder above are the
nearest to what new clips will give.

| run | epochs |
|---|---|
{rows}
{test}
{_use(inputs, settings)}
{licence_text(inputs)}
"""
