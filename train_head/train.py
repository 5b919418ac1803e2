"""One call from caches and label files to a finished run folder."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from cache.container import StrPath
from cache.reader import FeatureCache
from train_head import run_folder
from train_head.card import model_card
from train_head.data import Split, gather, open_caches
from train_head.derived import save_transform, stored_transform
from train_head.errors import LabelError
from train_head.labels import Labels, read_labels, write_predictions
from train_head.metrics import Report, evaluate
from train_head.settings import TrainSettings
from train_head.trainer import OnEpoch, Record, Trainer, predict


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        report: validation metrics of the best epoch.
        test_report: test metrics, where a test file with targets was given.
        best_epoch: its number, from 1.
        history: one record per epoch, as in metrics.jsonl.
        skipped: clips of the label files that no cache holds (with `skip_missing`).
        resumed_at: epochs that were done before this call; equal to len(history) where there was nothing to do.
    """

    folder: Path
    report: Report
    test_report: Report | None
    best_epoch: int
    history: list[Record]
    skipped: int
    resumed_at: int


def train(
    caches: StrPath | Sequence[StrPath],
    train: StrPath,
    valid: StrPath,
    out: StrPath,
    settings: TrainSettings | None = None,
    *,
    test: StrPath | None = None,
    skip_missing: bool = False,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train a head on cached features; called again it resumes, or finds nothing to do.

    Args:
        caches: one cache, or several with equal fingerprints that together hold the clips.
        train: label CSV of the training split.
        valid: label CSV by which the best epoch is chosen.
        out: run folder.
        settings: how to train; the paper's settings by default.
        test: CSV of a third split that is predicted with the best epoch; its targets may be missing.
        skip_missing: leave out clips that no cache holds instead of refusing.
        on_epoch: called with each epoch's record.

    Raises:
        LabelError, TrainSettingsError, RunFolderError, CacheError: before anything was written.
        DivergedError: the loss is not finite.
    """
    settings = settings or TrainSettings()
    paths = [caches] if isinstance(caches, str | os.PathLike) else list(caches)
    files = {"train": train, "valid": valid} | ({"test": test} if test is not None else {})
    labels = {name: read_labels(path, settings.label_scale) for name, path in files.items()}
    _check_targets(labels)
    stores = open_caches(paths)
    splits = {name: gather(stores, part, skip_missing=skip_missing) for name, part in labels.items()}
    folder = Path(out)
    run_folder.prepare_folder(folder, _config(settings, stores, paths, files, labels))
    save_transform(folder, stores)
    trainer = Trainer(settings, splits["train"], splits["valid"], folder)
    trainer.restore()
    resumed_at = len(trainer.history)
    trainer.fit(on_epoch)
    reports = _write_predictions(trainer, splits, folder)
    result = TrainResult(
        folder=folder,
        report=reports["valid"],
        test_report=reports.get("test"),
        best_epoch=trainer.best_epoch,
        history=trainer.history,
        skipped=sum(len(labels[name]) - len(splits[name]) for name in splits),
        resumed_at=resumed_at,
    )
    card = model_card(settings, stores[0], labels, splits, result.best_epoch, result.report, result.test_report)
    run_folder.write_atomically(folder / run_folder.CARD, card.encode())
    return result


def _check_targets(labels: dict[str, Labels]) -> None:
    names = labels["train"].names
    if not names:
        raise LabelError(f"{labels['train'].path} has no target columns beside Filename")
    for split, part in labels.items():
        if part.names != names and not (split == "test" and not part.names):
            raise LabelError(
                f"{part.path} has the targets {', '.join(part.names) or 'none'}, and {labels['train'].path} has "
                f"{', '.join(names)}; both need the same columns in the same order"
            )


def _config(
    settings: TrainSettings,
    stores: Sequence[FeatureCache],
    paths: Sequence[StrPath],
    files: dict[str, StrPath],
    labels: dict[str, Labels],
) -> dict[str, Any]:
    """The run's config.toml: settings at the top, then the tables that record what it was made from."""
    data: dict[str, Any] = {"caches": [os.path.abspath(p) if "://" not in os.fspath(p) else p for p in paths]}
    for name, path in files.items():
        data |= {name: os.path.abspath(path), f"{name}_sha256": run_folder.file_sha256(path)}
    header = stores[0].header
    features = {
        "dim": header.dim,
        "vad_names": list(header.vad_names),
        "hop_seconds": header.hop_seconds,
        "source": header.provenance.get("source", ""),
        "fingerprint": dict(header.fingerprint),
    }
    transform = stored_transform(stores)
    if transform is not None:
        features["transform_sha256"] = hashlib.sha256(transform).hexdigest()
    return settings.to_toml() | {"data": data | {"targets": list(labels["train"].names)}, "features": features}


def _write_predictions(trainer: Trainer, splits: dict[str, Split], folder: Path) -> dict[str, Report]:
    """Predict the validation and test splits with the best epoch's weights."""
    trainer.head.load_state_dict(load_file(folder / run_folder.BEST))
    names = splits["train"].labels.names
    reports: dict[str, Report] = {}
    for name in ("valid", "test"):
        if name in splits:
            values = predict(trainer.head, splits[name], targets=len(names))
            write_predictions(folder / f"predictions_{name}.csv", splits[name].labels, names, values)
            if splits[name].labels.names:
                reports[name] = evaluate(values, splits[name].labels.values, names)
    return reports
