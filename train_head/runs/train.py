"""Train one run: prepare its folder, train, predict, and write its pictures and its card."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.labels import FILENAME
from train_head.data.predictions import prediction_file, read_predictions, write_predictions
from train_head.data.splits import Split, lacking_clips
from train_head.errors import RunFolderError
from train_head.evaluation.labelled import report_of
from train_head.evaluation.metrics import Report, label_means
from train_head.reports.tables import csv_text
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs, rater_agreement
from train_head.runs.result import Predictions, TrainResult
from train_head.runs.smoothing import choose_smoothing, read_smoothing
from train_head.targets import FRAME
from train_head.training.compatibility import check_targets
from train_head.training.loop import SILENT, Record, Reporter, TrainingLoop
from train_head.training.settings import TrainSettings

PREDICTED = ("valid", "test")
"""Splits that a run predicts, where it has them."""


def train_run(
    inputs: Inputs, out: StrPath, settings: TrainSettings, *, keep_last: bool = False, reporter: Reporter = SILENT
) -> TrainResult:
    """Train a head on inputs that are in memory; called again it resumes, or finds nothing to do.

    Args:
        inputs: with the splits "train" and "valid", perhaps "test", which is predicted with the best epoch.
        out: run folder.
        settings: how to train.
        keep_last: keep the last epoch, so that nothing is chosen on the validation clips.
        reporter: hears of epochs and steps.

    Raises:
        TrainSettingsError: there is no such device, or the settings do not go with the targets.
        RunFolderError: the folder holds something else or is damaged, or another process trains into it.
        DivergedError: the loss is not finite.
    """
    from train_head.reports.card import write_card
    from train_head.reports.figures import draw_run  # takes half a second, which a finished run need not wait
    from train_head.reports.traces import draw_traces

    settings, folder = settings.on_this_machine().for_streams(inputs.source.streams), Path(out)
    check_targets(settings, inputs.labels["train"].targets)
    run_folder.prepare_folder(folder, run_config(settings, inputs))
    with run_folder.locked(folder):
        valid = None if keep_last else inputs.splits["valid"]
        loop, resumed_at = fit(inputs, folder, settings, valid, reporter)
        predictions = predict_splits(loop, inputs.splits, folder)
        result = _result(inputs, folder, predictions, loop.history, resumed_at)
        if resumed_at < len(loop.history) or not (folder / run_folder.CARD).is_file():  # written last
            draw_run(folder, loop.history, {name: split.labels for name, split in inputs.splits.items()})
            for name, values in predictions.items():
                draw_traces(folder, name, values, inputs.splits[name], settings.label_fps)
        write_card(settings, inputs, result)
        return result


def finished_run(inputs: Inputs, folder: Path, settings: TrainSettings) -> TrainResult | None:
    """Return the finished run in a folder, from its files; None where it is not finished, or a process trains it now.

    Raises:
        RunFolderError: the folder holds another run.
    """
    if not (folder / run_folder.CARD).is_file():  # written last
        return None
    settings = settings.on_this_machine().for_streams(inputs.source.streams)
    run_folder.prepare_folder(folder, run_config(settings, inputs))
    try:
        with run_folder.locked(folder):
            history = run_folder.read_history(folder)
            names = inputs.splits["train"].labels.names  # a test split may have none
            predicted = {
                name: replace(inputs.splits[name].labels, names=names) for name in PREDICTED if name in inputs.splits
            }
            predictions = {
                name: read_predictions(prediction_file(folder, name, labels), labels)
                for name, labels in predicted.items()
            }
    except RunFolderError:
        return None
    return _result(inputs, folder, predictions, history, len(history))


def fit(
    inputs: Inputs, folder: Path, settings: TrainSettings, valid: Split | None, reporter: Reporter
) -> tuple[TrainingLoop, int]:
    """Train to the end in a prepared folder.

    Args:
        inputs: with the split "train".
        folder: run folder.
        settings: resolved for this machine.
        valid: by which the best epoch is chosen; None keeps the last.
        reporter: hears of epochs and steps.

    Returns:
        The trained loop, and the number of epochs that were done before.
    """
    inputs.source.prepare(folder)
    if lacking := lacking_clips(inputs.splits):
        text = csv_text([("split", FILENAME, "stream"), *lacking])
        write_atomically(folder / run_folder.MISSING_STREAMS, text.encode())
    loop = inputs.source.make_loop(settings, inputs.splits["train"], valid, folder)
    loop.restore()
    resumed_at = len(loop.history)
    loop.fit(reporter)
    return loop, resumed_at


def predict_splits(loop: TrainingLoop, splits: Mapping[str, Split], folder: Path) -> dict[str, NDArray[np.float32]]:
    """Predict the validation and test splits, where there are any, with the best weights, into CSV files.

    Args:
        loop: trained to the end.
        splits: by name; "train" gives the names of the targets.
        folder: run folder; gets predictions_valid.csv and predictions_test.csv, or folders of these names, smoothed
            where the settings say so: the smoothing is chosen on the validation split, or that of the folder.

    Returns:
        By split, (clips, targets), or (label rows, targets) for labels per frame.
    """
    names, loaded = splits["train"].labels.names, False
    smoothing = read_smoothing(folder)
    predictions: dict[str, NDArray[np.float32]] = {}
    for name in (name for name in PREDICTED if name in splits):
        labels = splits[name].labels
        file = prediction_file(folder, name, labels)
        values = loop.stored_predictions(file)
        if values is None:
            if not loaded:
                loop.load_best()
                loaded = True
            values = loop.predict(splits[name])
            if name == "valid":
                smoothing = choose_smoothing(loop.settings, values, labels)
            if smoothing is not None:
                smoothing = smoothing.scored(name, values, labels)
                values = smoothing.apply(values, labels.lengths)
                smoothing.write(folder)
            write_predictions(file, labels, names, values)
        predictions[name] = values
    return predictions


def score_splits(splits: Mapping[str, Split], predictions: Predictions) -> dict[str, Report]:
    """Score predictions of the splits that have targets.

    Args:
        splits: with "train", whose mean is a baseline.
        predictions: by split, of all clips or label rows.
    """
    train = splits["train"].labels
    mean = label_means(train.values)
    labels = {name: splits[name].labels for name in predictions}
    return {name: report_of(values, labels[name], mean) for name, values in predictions.items() if labels[name].names}


def run_config(settings: TrainSettings, inputs: Inputs) -> dict[str, Any]:
    """Return a run's config.toml: settings at the top, then tables that record what it was made from."""
    tables = inputs.source.tables()
    data = tables["data"]
    for name, path in inputs.label_files.files.items():
        data |= {name: os.path.abspath(path), f"{name}_sha256": run_folder.file_sha256(path)}
    for name, split in inputs.splits.items():
        if len(split) < len(inputs.labels[name]):  # with skip_missing: the cache may have more of them the next time
            data[f"{name}_clips_sha256"] = hashlib.sha256("\n".join(split.labels.ids).encode()).hexdigest()
    if inputs.label_files.ids:
        data["ids"] = list(inputs.label_files.ids)
    if required := [name for name in inputs.source.streams if name in inputs.label_files.require]:
        data["require"] = required
    data |= inputs.label_files.format.to_dict() | {"targets": list(inputs.labels["train"].names)}
    if inputs.labels["train"].by_frame:
        data["resolution"] = FRAME
    protocol = {"protocol": dict(inputs.protocol)} if inputs.protocol else {}
    return (
        settings.for_streams(inputs.source.streams).to_toml() | tables | protocol | {"versions": run_folder.versions()}
    )


def _result(
    inputs: Inputs, folder: Path, predictions: Predictions, history: list[Record], resumed_at: int
) -> TrainResult:
    reports = score_splits(inputs.splits, predictions)
    return TrainResult(
        folder=folder,
        predictions=predictions,
        report=reports["valid"],
        test_report=reports.get("test"),
        best_epoch=max(record["epoch"] for record in history if record["best"]),
        history=history,
        skipped=inputs.skipped,
        overlap=inputs.overlap,
        agreement=rater_agreement(inputs.splits["valid"].labels),
        smoothing=read_smoothing(folder),
        resumed_at=resumed_at,
    )
