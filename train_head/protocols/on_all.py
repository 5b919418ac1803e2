"""Train on all clips for the number of epochs that was best before, as the paper does for its submission."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.label_format import range_text
from train_head.evaluation.metrics import Report
from train_head.protocols.members import prepare_protocol, write_ensemble, write_mean
from train_head.protocols.pool import pool, trainable
from train_head.protocols.result import ProtocolResult, Scored
from train_head.reports.tables import licence_line
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs
from train_head.runs.result import Predictions, TrainResult
from train_head.runs.train import fit, predict_splits, run_config, score_splits, train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings, with_seed

ALL = "all"


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


def train_one_and_all(
    inputs: Inputs, out: StrPath, settings: TrainSettings, reporter: Reporter = SILENT
) -> tuple[TrainResult, AllResult]:
    """Train the ordinary run in `out`, then out/all on all clips for its best number of epochs.

    Raises:
        LabelError: a clip is in both splits.
        RunFolderError: a folder holds another run.
    """
    reporter.run_started(Path(out).name, Path(out), settings)
    result = train_run(inputs, out, settings, reporter=reporter)
    reporter.run_started(ALL, Path(out) / ALL, replace(settings, stop_after=result.best_epoch))
    return result, train_on_all(inputs, Path(out) / ALL, settings, result.best_epoch, reporter)[0]


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
    trained, predictions = 0, []
    for i, (name, epochs) in enumerate(zip(seeds.members, seeds.best_epochs, strict=True)):
        of_run = with_seed(settings, settings.seed + i)
        place = seeds.folder / name / ALL
        reporter.run_started(f"{name}/{ALL}", place, replace(of_run, stop_after=epochs))
        result, predicted = train_on_all(inputs, place, of_run, epochs, reporter)
        trained += result.epochs_trained
        predictions.append(predicted)
    members = [f"../{name}/{ALL}" for name in seeds.members]
    test, scored = inputs.splits.get("test"), None
    if test is not None:
        scored = write_mean(folder, "test", [part["test"] for part in predictions], test.labels, pool(inputs).labels)
    card = _ensemble_card(inputs, members, seeds.best_epochs, scored)
    write_atomically(folder / run_folder.CARD, card.encode())
    write_ensemble(folder, ALL, members)
    report = scored.report if scored else None
    return AllResult(folder=folder, epochs=seeds.best_epochs, test_report=report, epochs_trained=trained)


def train_on_all(
    inputs: Inputs, folder: Path, settings: TrainSettings, epochs: int, reporter: Reporter
) -> tuple[AllResult, Predictions]:
    """Train one run on the clips of "train" and "valid"; there is no validation, and the last epoch is kept.

    Args:
        inputs: "test" is predicted where given.
        folder: run folder.
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
    loop, before = fit(on_all, folder, settings, None, reporter)
    predictions = predict_splits(loop, splits, folder)
    report = score_splits(splits, predictions).get("test")
    write_atomically(folder / run_folder.CARD, _card(inputs, settings, report).encode())
    trained = len(loop.history) - before
    return AllResult(folder=folder, epochs=(epochs,), test_report=report, epochs_trained=trained), predictions


def _clips(inputs: Inputs) -> str:
    train, valid = len(inputs.splits["train"]), len(inputs.splits["valid"])
    return f"{train + valid} clips: {train} training and {valid} validation clips"


_USE = """## Use

```
emi predict MEDIA --model THIS_FOLDER
```

Intensities describe how strongly an emotion is *shown*; they say nothing about what a person feels.
"""


def _card(inputs: Inputs, settings: TrainSettings, report: Report | None) -> str:
    names = inputs.splits["train"].labels.names
    scale = range_text(settings.label_range)
    test = f"\n## Test\n\n```\n{report.table()}\n```\n" if report else ""
    return f"""# Head `{settings.head}` for {", ".join(names)}, trained on all clips

Predicts intensities in {scale} of a clip from features of `{inputs.source.fingerprint["backbone"]}`.
Trained on all {_clips(inputs)}.

**There is no validation:** all labelled clips were trained on, so no figure here says how well this head does on
others; that of the run in the folder above is the nearest.

Trained for {settings.stop_after} epochs, the number that was best there, with the learning rate of {settings.epochs};
the last epoch is kept. Loss `{settings.loss}`, seed {settings.seed}; all settings are in `config.toml`.
{test}
{_USE}
{licence_line(inputs.source.fingerprint["backbone"], inputs.source.licence)}
"""


def _ensemble_card(inputs: Inputs, members: Sequence[str], epochs: Sequence[int], scored: Scored | None) -> str:
    names = inputs.splits["train"].labels.names
    rows = "\n".join(f"| [{name}]({name}/README.md) | {n} |" for name, n in zip(members, epochs, strict=True))
    test = f"\n## Test\n\n```\n{scored.table()}\n```\n" if scored else ""
    return f"""# Mean of {len(members)} heads for {", ".join(names)}, trained on all clips

Each was trained on all {_clips(inputs)}.

**There is no validation:** all labelled clips were trained on; the figures of the seeds in the folder above are the
nearest to what new clips will give.

| run | epochs |
|---|---|
{rows}
{test}
{_USE}
{licence_line(inputs.source.fingerprint["backbone"], inputs.source.licence)}
"""
