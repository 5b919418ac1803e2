"""Cross-validation: every clip is predicted once, by a run that did not train on it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.groups import Rows, official_folds, speaker_folds
from train_head.data.labels import FILENAME
from train_head.data.predictions import prediction_file, write_predictions
from train_head.data.splits import Split
from train_head.errors import LabelError, refuse
from train_head.evaluation.baselines import FOLDS, LABELS_FOLDS, fold_means
from train_head.protocols.pool import pool, trainable, write_pooled_labels
from train_head.protocols.result import ProtocolResult, finish, listed_members, prepare_protocol, score
from train_head.reports.tables import csv_text
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs, check_disjoint_splits
from train_head.runs.result import TrainResult
from train_head.runs.train import finished_run, train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings
from train_head.training.smoothing_kinds import NO_SMOOTHING


def train_folds(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    folds: int | str,
    reporter: Reporter = SILENT,
    *,
    only: int | None = None,
) -> tuple[TrainResult | ProtocolResult, tuple[int, ...]]:
    """Train one run per fold into out/fold-0, out/fold-1, …; called again it resumes.

    With groups no two folds share one (`groups.speaker_folds`); without, the clips are shuffled by the seed.
    With `stop_after` every run keeps its last epoch, and its fold chooses nothing.

    Args:
        inputs: the clips of the splits "train" and, where given, "valid" are cut into folds; "test" is predicted by the
            mean of the runs.
        out: folder of the runs; gets predictions_folds.csv with all clips and labels_folds.csv to score it with (or
            folders, where the labels are), folds.csv, summary.json, README.md and ensemble.toml.
        settings: of every run, and the seed of the folds.
        folds: how many, 2 or more; or `OFFICIAL6`, see `groups.official_folds`.
        reporter: hears of runs, epochs and steps.
        only: train this fold alone, from 0. Several jobs may run at once on one file system, each with another fold;
            the job that finishes last joins them.

    Returns:
        The result of all folds; or that of the only one, and the folds that are not finished yet.

    Raises:
        LabelError: fewer than 2 folds, more than groups (or clips), or a clip in both label files.
        RunFolderError: the folder holds something else, or another process trains the same fold.
    """
    work = _begin(inputs, out, settings, folds)
    before = listed_members(work.folder)
    numbers = range(len(work.cut))
    mine = {number: work.train(number, reporter) for number in (numbers if only is None else (only,))}
    with run_folder.locked(work.folder, wait=True):
        results = {i: found for i in numbers if (found := mine.get(i) or work.finished(i)) is not None}
        missing = tuple(i for i in numbers if i not in results)
        if missing:
            return next(iter(mine.values())), missing
        return _join(work, list(results.values()), before), ()


@dataclass(frozen=True, kw_only=True)
class _Folds:
    """The folds of a set of clips: what each is trained from, and where.

    Attributes:
        inputs: of all folds together.
        folder: that holds the runs.
        settings: of every run.
        clips: that are cut into folds.
        labels: CSV or folder of their labels.
        folds: how many, or their name.
        cut: per fold the rows to train on and the rows to predict.
    """

    inputs: Inputs
    folder: Path
    settings: TrainSettings
    clips: Split
    labels: Path
    folds: int | str
    cut: Sequence[tuple[Rows, Rows]]

    def part(self, number: int) -> Inputs:
        """Return the inputs of one fold; its clips are hashed, so that other folds are another run."""
        train, valid = self.cut[number]
        splits = {"train": trainable(self.clips.take(train)), "valid": self.clips.take(valid)}
        ids = "\n\n".join("\n".join(split.labels.ids) for split in splits.values())
        files: dict[str, StrPath] = dict.fromkeys(splits, self.labels)
        if "test" in self.inputs.splits:
            splits["test"], files["test"] = self.inputs.splits["test"], self.inputs.label_files.files["test"]
        return replace(
            self.inputs,
            label_files=replace(self.inputs.label_files, files=files),
            splits=splits,
            labels={name: split.labels for name, split in splits.items()},
            protocol={
                "kind": "fold",
                "number": number,
                "folds": self.folds,
                "clips_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            },
        )

    def train(self, number: int, reporter: Reporter) -> TrainResult:
        place, keep_last = self.folder / f"fold-{number}", self.settings.stop_after > 0
        reporter.run_started(place.name, place, self.settings)
        return train_run(self.part(number), place, self.settings, keep_last=keep_last, reporter=reporter)

    def finished(self, number: int) -> TrainResult | None:
        return finished_run(self.part(number), self.folder / f"fold-{number}", self.settings)


def _begin(inputs: Inputs, out: StrPath, settings: TrainSettings, folds: int | str) -> _Folds:
    """Cut the folds and prepare the folder; several jobs may do so at the same time."""
    settings, folder = settings.on_this_machine(), Path(out)
    clips = pool(inputs)
    if isinstance(folds, str):
        check_disjoint_splits(inputs.labels)
        train = inputs.splits["train"].labels
        cut = official_folds(train.filenames, train.groups, len(clips) - len(train))
    else:
        cut = cut_folds(clips, folds, settings.seed)
    prepare_protocol(folder, settings, inputs, {"kind": "folds", "folds": folds})
    with run_folder.locked(folder, wait=True):
        labels = write_pooled_labels(inputs, folder, LABELS_FOLDS)
    return _Folds(inputs=inputs, folder=folder, settings=settings, clips=clips, labels=labels, folds=folds, cut=cut)


def cut_folds(split: Split, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Return per fold the rows to train on and the rows to predict, both ascending.

    Raises:
        LabelError: fewer than 2 folds, or more than there are groups, or clips where there are no groups.
    """
    from sklearn.model_selection import KFold

    if split.labels.groups is not None:
        return speaker_folds(split.labels.groups, folds, seed)
    refuse(
        (folds < 2, f"cross-validation needs at least 2 folds, got {folds}"),
        (
            folds > len(split),
            f"{folds} folds need as many clips, and there are {len(split)}; give fewer folds, or more clips",
        ),
        error=LabelError,
    )
    cut = KFold(n_splits=folds, shuffle=True, random_state=seed).split(np.zeros((len(split), 1)))
    return [(train.tolist(), valid.tolist()) for train, valid in cut]


def _join(work: _Folds, results: Sequence[TrainResult], before: tuple[str, ...]) -> ProtocolResult:
    """Write what the folds predict together."""
    from train_head.reports.traces import draw_traces

    labels, number = work.clips.labels, np.zeros(len(work.clips), np.int64)
    predicted = np.zeros_like(labels.values)
    for i, ((_, clips), result) in enumerate(zip(work.cut, results, strict=True)):
        predicted[labels.rows_of(clips)], number[clips] = result.predictions["valid"], i
    write_predictions(prediction_file(work.folder, "folds", labels), labels, labels.names, predicted)
    draw_traces(work.folder, "folds", predicted, work.clips, work.settings.label_fps)
    table = csv_text([(FILENAME, "fold"), *zip(labels.filenames, number.tolist(), strict=True)])
    write_atomically(work.folder / FOLDS, table.encode())
    means = fold_means(labels.values, np.repeat(number, labels.lengths))
    return finish(
        work.folder,
        "folds",
        work.inputs,
        work.settings,
        results,
        valid=score(predicted, labels, [result.report for result in results], means),
        labels=labels,
        train=labels,
        notes=_notes(work),
        before=before,
    )


def _notes(work: _Folds) -> tuple[str, ...]:
    inputs, settings = work.inputs, work.settings
    epochs = (
        f"Every run kept its last epoch, {settings.stop_after}, so no fold chose its own."
        if settings.stop_after
        else "Each fold's best epoch was chosen on the fold itself, so these figures are optimistic; a fixed number of "
        "epochs (stop_after) chooses nothing."
    )
    if settings.smooth != NO_SMOOTHING and not settings.smooth_rows:
        epochs += " How wide each fold is smoothed was chosen on the fold itself; smooth_rows chooses nothing."
    groups = (
        f"The folds share no group ({inputs.label_files.format.group_by})."
        if inputs.label_files.format.group_by is not None
        else "The folds were cut without regard to who speaks: speakers may be on both sides, which flatters these "
        "figures; group_by keeps them apart."
    )
    return epochs, groups, *(f"{sentence}." for sentence in inputs.lacking)
