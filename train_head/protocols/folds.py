"""Cross-validation: every clip is predicted once, by a run that did not train on it."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.groups import Rows, speaker_folds
from train_head.data.labels import FILENAME, write_predictions
from train_head.data.splits import Split
from train_head.errors import LabelError
from train_head.evaluation.baselines import FOLDS, LABELS_FOLDS, fold_means
from train_head.protocols.members import (
    listed_members,
    prepare_protocol,
    score,
    write_ensemble,
    write_mean,
    write_summary,
)
from train_head.protocols.pool import pool, pooled_csv, trainable
from train_head.protocols.result import ProtocolResult
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs, rater_agreement
from train_head.runs.result import TrainResult
from train_head.runs.train import finished_run, train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings

PREDICTIONS = "predictions_folds.csv"


@dataclass(frozen=True, kw_only=True)
class OneFold:
    """One fold that was trained of several.

    Attributes:
        result: its run.
        missing: the folds that are not finished yet; of none, all are put together.
        together: the result of all, where none is missing.
    """

    result: TrainResult
    missing: tuple[int, ...]
    together: ProtocolResult | None


def train_folds(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    folds: int,
    reporter: Reporter = SILENT,
) -> ProtocolResult:
    """Train one run per fold into out/fold-0, out/fold-1, …; called again it resumes.

    With groups no two folds share one (`groups.speaker_folds`); without, the clips are shuffled by the seed.
    With `stop_after` every run keeps its last epoch, and its fold chooses nothing.

    Args:
        inputs: the clips of the splits "train" and, where given, "valid" are cut into folds; "test" is predicted by the
            mean of the runs.
        out: folder of the runs; gets predictions_folds.csv with all clips, labels_folds.csv to score it with,
            folds.csv, summary.json, README.md and ensemble.toml.
        settings: of every run, and the seed of the folds.
        folds: how many; 2 or more.
        reporter: hears of runs, epochs and steps.

    Raises:
        LabelError: fewer than 2 folds, more than groups (or clips), or a clip in both label files.
        RunFolderError: the folder holds something else.
    """
    work = _begin(inputs, out, settings, folds)
    before = listed_members(work.folder)
    results = [work.train(number, reporter) for number in range(folds)]
    with run_folder.locked(work.folder, wait=True):
        return _finish(work, results, before)


def train_one_fold(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    folds: int,
    number: int,
    reporter: Reporter = SILENT,
) -> OneFold:
    """Train one of the folds only, for jobs that share them; the one that finishes last puts them together.

    Several jobs may run at once on one file system, each with another number.

    Args:
        inputs: see `train_folds`.
        out: see `train_folds`; the same for all jobs.
        settings: see `train_folds`.
        folds: how many there are.
        number: of the one to train, from 0.
        reporter: hears of epochs and steps.

    Raises:
        LabelError: see `train_folds`.
        RunFolderError: the folder holds something else, or another process trains this fold.
    """
    work = _begin(inputs, out, settings, folds)
    result = work.train(number, reporter)
    with run_folder.locked(work.folder, wait=True):
        before = listed_members(work.folder)
        found = [result if i == number else work.finished(i) for i in range(folds)]
        results = [one for one in found if one is not None]
        if len(results) < folds:
            missing = tuple(i for i, one in enumerate(found) if one is None)
            return OneFold(result=result, missing=missing, together=None)
        return OneFold(result=result, missing=(), together=_finish(work, results, before))


@dataclass(frozen=True, kw_only=True)
class _Folds:
    """The folds of some clips: what each is trained from, and where."""

    inputs: Inputs
    folder: Path
    settings: TrainSettings
    clips: Split
    cut: Sequence[tuple[Rows, Rows]]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(f"fold-{i}" for i in range(len(self.cut)))

    def part(self, number: int) -> Inputs:
        protocol: dict[str, str | int] = {"kind": "fold", "number": number, "folds": len(self.cut)}
        return _fold(self.inputs, self.clips, self.folder / LABELS_FOLDS, self.cut[number], protocol)

    def train(self, number: int, reporter: Reporter) -> TrainResult:
        name, keep_last = self.members[number], self.settings.stop_after > 0
        reporter.run_started(name, self.folder / name, self.settings)
        return train_run(self.part(number), self.folder / name, self.settings, keep_last=keep_last, reporter=reporter)

    def finished(self, number: int) -> TrainResult | None:
        return finished_run(self.part(number), self.folder / self.members[number], self.settings)


def _begin(inputs: Inputs, out: StrPath, settings: TrainSettings, folds: int) -> _Folds:
    """Cut the folds, and prepare the folder, as jobs may do that begin together."""
    settings, folder = settings.on_this_machine(), Path(out)
    clips = pool(inputs)
    cut = cut_folds(clips, folds, settings.seed)
    prepare_protocol(folder, settings, inputs, {"kind": "folds", "folds": folds})
    labels = pooled_csv(inputs).encode()
    with run_folder.locked(folder, wait=True):
        if not (folder / LABELS_FOLDS).is_file() or (folder / LABELS_FOLDS).read_bytes() != labels:
            write_atomically(folder / LABELS_FOLDS, labels)
    return _Folds(inputs=inputs, folder=folder, settings=settings, clips=clips, cut=cut)


def _finish(work: _Folds, results: Sequence[TrainResult], before: tuple[str, ...]) -> ProtocolResult:
    """Put finished folds together."""
    done = _join(work, results, before)
    names = ", ".join(work.clips.labels.names)
    write_summary(done, work.settings, work.inputs, f"{len(results)} folds of one head for {names}")
    write_ensemble(work.folder, "folds", work.members)
    return done


def cut_folds(split: Split, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Per fold the rows to train on and the rows to predict, both ascending.

    Raises:
        LabelError: fewer than 2 folds, or more than there are groups, or clips where there are no groups.
    """
    from sklearn.model_selection import KFold

    if split.labels.groups is not None:
        return speaker_folds(split.labels.groups, folds, seed)
    if folds < 2:
        raise LabelError(f"cross-validation needs at least 2 folds, got {folds}")
    if folds > len(split):
        raise LabelError(f"{folds} folds need as many clips, and there are {len(split)}")
    cut = KFold(n_splits=folds, shuffle=True, random_state=seed).split(np.zeros((len(split), 1)))
    return [(train.tolist(), valid.tolist()) for train, valid in cut]


def _fold(
    inputs: Inputs, clips: Split, labels: Path, rows: tuple[Rows, Rows], protocol: dict[str, str | int]
) -> Inputs:
    """The inputs of one fold; its clips are hashed, so that other folds are another run."""
    splits = {"train": trainable(clips.take(rows[0])), "valid": clips.take(rows[1])}
    ids = "\n".join(splits["train"].labels.ids) + "\n\n" + "\n".join(splits["valid"].labels.ids)
    files: dict[str, StrPath] = {"train": labels, "valid": labels}
    if "test" in inputs.splits:
        splits["test"], files["test"] = inputs.splits["test"], inputs.label_files.files["test"]
    return replace(
        inputs,
        label_files=replace(inputs.label_files, files=files),
        splits=splits,
        labels={name: split.labels for name, split in splits.items()},
        protocol=protocol | {"clips_sha256": hashlib.sha256(ids.encode()).hexdigest()},
    )


def _join(work: _Folds, results: Sequence[TrainResult], before: tuple[str, ...]) -> ProtocolResult:
    """Write what the folds predict together."""
    inputs, clips, folder, members = work.inputs, work.clips, work.folder, work.members
    labels, number = clips.labels, np.zeros(len(clips), np.int64)
    predicted = np.zeros_like(labels.values)
    for i, ((_, rows), result) in enumerate(zip(work.cut, results, strict=True)):
        predicted[rows], number[rows] = result.predictions["valid"], i
    write_predictions(folder / PREDICTIONS, labels, labels.names, predicted)
    _write_folds(folder / FOLDS, labels.filenames, number.tolist())
    test = inputs.splits.get("test")
    trained = sum(len(result.history) - result.resumed_at for result in results)
    return ProtocolResult(
        folder=folder,
        kind="folds",
        members=members,
        best_epochs=tuple(result.best_epoch for result in results),
        valid=score(predicted, labels, [result.report for result in results], fold_means(labels.values, number)),
        test=write_mean(folder, "test", [result.predictions["test"] for result in results], test.labels, labels)
        if test is not None
        else None,
        agreement=rater_agreement(labels),
        notes=_notes(inputs, work.settings),
        skipped=inputs.skipped,
        epochs_trained=trained,
        nothing_to_do=trained == 0 and before == members,
    )


def _write_folds(path: Path, filenames: Sequence[str], number: Sequence[int]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[FILENAME, "fold"], *zip(filenames, number, strict=True)])
    write_atomically(path, text.getvalue().encode())


def _notes(inputs: Inputs, settings: TrainSettings) -> tuple[str, ...]:
    epochs = (
        f"Every run kept its last epoch, {settings.stop_after}, so no fold chose its own."
        if settings.stop_after
        else "Each fold's best epoch was chosen on the fold itself, so these figures are optimistic; a fixed number of "
        "epochs (stop_after) chooses nothing."
    )
    groups = (
        f"The folds share no group ({inputs.label_files.format.group_by})."
        if inputs.label_files.format.group_by is not None
        else "The clips were shuffled without regard to who speaks: speakers may be on both sides, which flatters "
        "these figures; group_by keeps them apart."
    )
    return epochs, groups
