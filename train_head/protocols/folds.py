"""Cross-validation: every clip is predicted once, by a run that did not train on it."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.container import StrPath
from train_head import run_folder
from train_head.baselines import FOLDS, LABELS_FOLDS, fold_means
from train_head.data import Split
from train_head.errors import LabelError
from train_head.groups import Rows, speaker_folds
from train_head.labels import FILENAME, write_predictions
from train_head.protocols.members import (
    OnRun,
    listed_members,
    member_predictions,
    prepare_protocol,
    score,
    write_ensemble,
    write_mean,
    write_summary,
)
from train_head.protocols.pool import pool, pooled_csv
from train_head.protocols.result import ProtocolResult
from train_head.settings import TrainSettings
from train_head.train import Inputs, TrainResult, rater_agreement, train_run
from train_head.trainer import OnEpoch

PREDICTIONS = "predictions_folds.csv"


def train_folds(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    folds: int,
    *,
    on_run: OnRun | None = None,
    on_epoch: OnEpoch | None = None,
) -> ProtocolResult:
    """Train one run per fold into out/fold-0, out/fold-1, …; called again it goes on.

    With groups no two folds share one (`train_head.groups.speaker_folds`); without, the clips are shuffled by the seed.
    With `stop_after` every run keeps its last epoch, and its fold chooses nothing.

    Args:
        inputs: the clips of the splits "train" and, where given, "valid" are cut into folds; "test" is predicted by the
            mean of the runs.
        out: folder of the runs; gets predictions_folds.csv with all clips, labels_folds.csv to score it with,
            folds.csv, summary.json, README.md and ensemble.toml.
        settings: of every run, and the seed of the folds.
        folds: how many; 2 or more.
        on_run: called before each run.
        on_epoch: called with each epoch's record.

    Raises:
        LabelError: fewer than 2 folds, more than groups (or clips), or a clip in both label files.
        RunFolderError: the folder holds something else.
    """
    settings, folder = settings.on_this_machine(), Path(out)
    everything = pool(inputs)
    cut = cut_folds(everything, folds, settings.seed)
    prepare_protocol(folder, settings, inputs, {"kind": "folds", "folds": folds})
    before = listed_members(folder)
    run_folder.write_atomically(folder / LABELS_FOLDS, pooled_csv(inputs).encode())
    members = tuple(f"fold-{i}" for i in range(folds))
    results: list[TrainResult] = []
    for i, (name, rows) in enumerate(zip(members, cut, strict=True)):
        if on_run:
            on_run(name, settings)
        part = _fold(inputs, everything, folder / LABELS_FOLDS, rows, {"kind": "fold", "number": i, "folds": folds})
        keep_last = settings.stop_after > 0
        results.append(train_run(part, folder / name, settings, keep_last=keep_last, on_epoch=on_epoch))
    done = _join(inputs, everything, cut, folder, settings, members, results, before)
    write_summary(done, settings, f"{folds} folds of one head for {', '.join(everything.labels.names)}")
    write_ensemble(folder, "folds", members)
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
    inputs: Inputs, everything: Split, labels: Path, rows: tuple[Rows, Rows], protocol: dict[str, str | int]
) -> Inputs:
    """The inputs of one fold; its clips are hashed, so that other folds are another run."""
    splits = {"train": everything.take(rows[0]), "valid": everything.take(rows[1])}
    clips = "\n".join(splits["train"].labels.ids) + "\n\n" + "\n".join(splits["valid"].labels.ids)
    files: dict[str, StrPath] = {"train": labels, "valid": labels}
    if "test" in inputs.splits:
        splits["test"], files["test"] = inputs.splits["test"], inputs.files["test"]
    return replace(
        inputs,
        files=files,
        splits=splits,
        labels={name: split.labels for name, split in splits.items()},
        protocol=protocol | {"clips_sha256": hashlib.sha256(clips.encode()).hexdigest()},
    )


def _join(
    inputs: Inputs,
    everything: Split,
    cut: Sequence[tuple[Rows, Rows]],
    folder: Path,
    settings: TrainSettings,
    members: tuple[str, ...],
    results: Sequence[TrainResult],
    before: tuple[str, ...],
) -> ProtocolResult:
    """Write what the folds make together."""
    labels, number = everything.labels, np.zeros(len(everything), np.int64)
    predicted = np.zeros_like(labels.values)
    for i, ((_, rows), values) in enumerate(zip(cut, member_predictions(folder, members, "valid"), strict=True)):
        predicted[rows], number[rows] = values, i
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
        test=write_mean(folder, members, "test", test.labels, labels) if test is not None else None,
        agreement=rater_agreement(labels),
        notes=_notes(inputs, settings),
        skipped=inputs.skipped,
        epochs_trained=trained,
        nothing_to_do=trained == 0 and before == members,
    )


def _write_folds(path: Path, filenames: Sequence[str], number: Sequence[int]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[FILENAME, "fold"], *zip(filenames, number, strict=True)])
    run_folder.write_atomically(path, text.getvalue().encode())


def _notes(inputs: Inputs, settings: TrainSettings) -> tuple[str, ...]:
    epochs = (
        f"Every run kept its last epoch, {settings.stop_after}, so no fold chose its own."
        if settings.stop_after
        else "Each fold's best epoch was chosen on the fold itself, so these figures are optimistic; a fixed number of "
        "epochs (stop_after) chooses nothing."
    )
    groups = (
        f"The folds share no group ({inputs.form.group_by})."
        if inputs.form.group_by is not None
        else "The clips were shuffled without regard to who speaks: speakers may be on both sides, which flatters "
        "these figures; group_by keeps them apart."
    )
    return epochs, groups
