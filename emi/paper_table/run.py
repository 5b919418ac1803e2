"""Train the rows of the paper's Table 1 on any data, each with several seeds; resumable row by row."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cache.paths import StrPath
from emi.finetuning.local_processes import check_processes
from emi.finetuning.settings import FinetuneSettings, resolve
from emi.finetuning.sharding import check_sharding
from emi.finetuning.start import FinetuneData, check_backbone, finetune, on_this_machine
from emi.paper_table.features import TableData, describe_features, extract_features, shows_faces
from emi.paper_table.result import MadeRow, Table1
from emi.paper_table.rows import AUDIO, FACE, ROWS, PaperRow, describe_head, row_settings
from extract.backbones import identify
from train_head.data.labels import Labels
from train_head.data.names import Caches
from train_head.errors import LabelError, TrainSettingsError, refuse
from train_head.protocols import train
from train_head.protocols.pool import check_apart
from train_head.runs.inputs import LabelFiles, check_disjoint_splits, gather_inputs
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

DECODED = "audio"
"""Folder of the decoded audio of the unfrozen rows."""


def table1(
    data: TableData,
    out: StrPath,
    *,
    seeds: int = 3,
    config: StrPath | None = None,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> Table1:
    """Train every row that can be made; called again it resumes with the first unfinished row.

    All rows but the unfrozen ones train on features: given, or extracted once into OUT/features.zarr and
    OUT/faces.zarr. Rows with and without faces are of the same clips.

    Args:
        data: media, backbones, caches and labels; with a test split the unfrozen rows are trained on train and valid
            as well.
        out: folder; gets one folder of seeds per row, table1.csv, table1.md and table1.svg.
        seeds: runs per row.
        config: TOML file of settings that the rows share.
        reporter: hears of rows, media, runs and epochs.
        **settings: of the heads and of the backbone, as for `emi.finetune`.

    Raises:
        EmiError: see `emi.finetuning.start.finetune` and `train_head.protocols.train`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainSettingsError("emi table1 runs in no torchrun; give --set processes=N, or train its rows one by one")
    folder, tuning = Path(out), resolve(config, **settings)[1]
    labels = _read_labels(data.label_files)
    lacking = data.lacking(tuning)
    data.check_backbones(lacking)
    rows = [row for row in ROWS if not lacking.keys() & set(row.needs)]
    of_head = row_settings(rows, config, **{k: v for k, v in settings.items() if k not in _TUNING})
    unfrozen = [row for row in rows if row.unfrozen]
    if unfrozen:
        _check_unfrozen(data, of_head[unfrozen[-1].folder], tuning, labels)
    left_out = _sentences(lacking)
    for sentence in left_out:
        reporter.note(sentence)
    caches: dict[str, list[StrPath]] = dict(data.given)
    folder.mkdir(parents=True, exist_ok=True)
    for stream in (AUDIO, FACE):
        if stream not in caches and stream not in lacking:
            shared = of_head[rows[-1].folder]
            caches[stream] = [extract_features(data, stream, folder, shared, tuning, labels, reporter)]
    if FACE in caches and not shows_faces(caches[FACE], labels):
        lacking[FACE] = f"no face was found in any clip of {', '.join(map(str, caches.pop(FACE)))}"
        rows, left_out = [row for row in rows if FACE not in row.streams], _sentences(lacking)
        refuse((not rows, f"{lacking[FACE]}, and there is nothing else to train on; add --cache audio=PATH"))
        reporter.note(*_sentences({FACE: lacking[FACE]}))
    made: dict[str, MadeRow] = {}
    for part, features in _by_features(rows, caches):
        made |= _train_on_features(part, features, data.label_files, folder, of_head, seeds, reporter)
    for row in unfrozen:
        made[row.folder] = _train_unfrozen(row, data, folder, of_head[row.folder], tuning, seeds, reporter)
    done = Table1(folder, tuple(made[row.folder] for row in rows), left_out)
    done.write()
    return done


_TUNING = frozenset(field.name for field in fields(FinetuneSettings))


def _read_labels(label_files: LabelFiles) -> Mapping[str, Labels]:
    labels = label_files.read()
    if labels["train"].by_frame:
        raise LabelError(
            f"{labels['train'].path} has labels per frame, and Table 1 is of one value per clip; compare heads on them "
            "with `emi ablate`"
        )
    check_disjoint_splits(labels)
    return labels


def _check_unfrozen(
    data: TableData, settings: TrainSettings, tuning: FinetuneSettings, labels: Mapping[str, Labels]
) -> None:
    """Refuse what the unfrozen rows cannot do, before the others are trained."""
    identity = identify(str(data.backbone))
    check_sharding(tuning, tuning.processes)
    check_processes(tuning.processes, on_this_machine(settings, identity).device)
    check_backbone(identity, settings, tuning)
    if "test" in labels and not data.label_files.skip_missing:  # which clips are left is known later
        check_apart(labels["train"], labels["valid"])


def _sentences(lacking: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence per reason for which rows are left out."""
    found: dict[str, list[str]] = {}
    for row in ROWS:
        why = next((lacking[need] for need in row.needs if need in lacking), None)
        if why is not None:
            found.setdefault(why, []).append(row.name)
    return tuple(f"left out: {', '.join(names)} ({why})" for why, names in found.items())


def _by_features(rows: Sequence[PaperRow], caches: Mapping[str, list[StrPath]]) -> list[tuple[list[PaperRow], Caches]]:
    """Return the rows on features that are loaded together; those of audio alone have a stream without a name."""
    cached = [row for row in rows if not row.unfrozen]
    with_faces = [row for row in cached if FACE in row.streams]
    of_audio = [row for row in cached if FACE not in row.streams]
    parts: list[tuple[list[PaperRow], Caches]] = []
    if with_faces:
        parts.append((with_faces, caches))
    if of_audio:
        parts.append((of_audio, caches[AUDIO]))
    return parts


def _train_on_features(
    rows: Sequence[PaperRow],
    caches: Caches,
    label_files: LabelFiles,
    folder: Path,
    of_head: Mapping[str, TrainSettings],
    seeds: int,
    reporter: Reporter,
) -> dict[str, MadeRow]:
    """Train rows on features that are loaded once, and return them by their folders."""
    several = isinstance(caches, Mapping)
    require = (AUDIO,) if isinstance(caches, Mapping) and AUDIO in caches else ()
    inputs = gather_inputs(caches, replace(label_files, require=require))
    made = {}
    for row in rows:
        reporter.row_started(row.name)
        part = inputs.of_streams(row.streams) if several else inputs
        outcome = train(part, folder / row.folder, of_head[row.folder], Validation(seeds=seeds), reporter)
        head = describe_head(of_head[row.folder], row)
        made[row.folder] = MadeRow(row, outcome, describe_features(part.source.streams), head)
    return made


def _train_unfrozen(
    row: PaperRow,
    data: TableData,
    folder: Path,
    settings: TrainSettings,
    tuning: FinetuneSettings,
    seeds: int,
    reporter: Reporter,
) -> MadeRow:
    """Train a row end to end on the media."""
    reporter.row_started(row.name)
    source = FinetuneData(
        media=data.media or "",
        label_files=data.label_files,
        backbone=str(data.backbone),
        audio=folder / DECODED,
        media_root=data.media_root,
    )
    validation = Validation(seeds=seeds, on_all="test" in data.label_files.files)
    outcome = finetune(source, folder / row.folder, settings, tuning, validation, reporter)
    identity = identify(str(data.backbone))
    features = f"{identity.fingerprint['backbone']} ({identity.dim + len(identity.vad_names)}), learning"
    return MadeRow(row, outcome, features, describe_head(settings, row))
