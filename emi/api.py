"""The two stages as plain functions: keyword arguments in, settings objects inside."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cache.paths import StrPath, takes_paths
from cache.settings import take
from extract import run as extract_run
from extract.run import ExtractSummary
from extract.settings import ExtractSettings
from train_head.data.label_format import LabelColumns
from train_head.data.names import Caches
from train_head.errors import RunFolderError, refuse
from train_head.protocols import (
    PAPER_ROWS,
    Ablation,
    EnsembleResult,
    ProtocolResult,
    Row,
    StreamAblation,
    ablate_streams,
    read_rows,
    rows_settings,
    rows_streams,
)
from train_head.protocols import ablate as run_ablation
from train_head.protocols import ensemble as make_ensemble
from train_head.protocols import train as run_training
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.result import TrainResult
from train_head.sweep.settings import SweepSettings
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import resolve_settings
from train_head.validation import Validation

if TYPE_CHECKING:
    from emi.paper_table.result import Table1
    from train_head.sweep.result import SweepResult
    from train_head.sweep.space import Space


@takes_paths
def extract(media: StrPath, cache: StrPath, **settings: Any) -> ExtractSummary:
    """Extract the features of media into a cache; what the cache has already is left as it is.

    Args:
        media: a folder (searched recursively), one file, a CSV with a Filename column, or a text list.
        cache: `NAME.zarr` or `NAME.h5`, created where missing.
        **settings: the fields of `extract.settings.ExtractSettings`: backbone, max_seconds, precision, device, …;
            engine="ray" shares the work between the machines of a Ray cluster (address="auto" or HOST:PORT).

    Returns:
        What was written, what was there before, and the files that could not be read.

    Raises:
        EmiError: the input cannot be used, or the cache was made otherwise; nothing was written then.
    """
    return extract_run.extract(media, cache, ExtractSettings(**settings))


@takes_paths
def train_head(
    cache: Caches,
    train: StrPath,
    valid: StrPath | None = None,
    out: StrPath | None = None,
    *,
    test: StrPath | None = None,
    config: StrPath | None = None,
    skip_missing: bool = False,
    require: Sequence[str] = (),
    ids: Sequence[str] = (),
    **settings: Any,
) -> TrainResult | ProtocolResult:
    """Train a head on cached features; the paper's settings are the defaults.

    Args:
        cache: one cache, several with equal fingerprints, or these by stream: `{"audio": "a.zarr", "face": "f.zarr"}`.
        train: label CSV of the training split.
        valid: label CSV by which the best epoch is chosen; may be left out with folds.
        out: run folder, needed; called again, an unfinished run resumes.
        test: CSV of a third split to predict.
        config: TOML file of settings.
        skip_missing: leave out labelled clips that the cache does not hold, or that lack a required stream.
        require: names of streams that every labelled clip must have.
        ids: `NAME=REGEX` for each stream whose ids differ from those of the labels, or "aff-wild2".
        **settings: fields of `train_head.validation.Validation` (seeds, folds, only_fold, train_on_all, group_by), of
            `train_head.data.label_format.LabelColumns` (targets, rater), of
            `train_head.training.settings.TrainSettings` (lr, epochs, seed, label_range, …), or options of the head
            (hidden).

    Returns:
        A `TrainResult`, or with seeds or folds a `ProtocolResult` (with only_fold as soon as no other fold is
        missing); both have folder, report, test_report and skipped.

    Raises:
        EmiError: see `train_head.protocols.train`.
    """
    if out is None:
        raise RunFolderError("there is no run folder to train into; give out=")
    columns, validation = take(LabelColumns, settings), take(Validation, settings)
    validation.check_split(valid)
    resolved = resolve_settings(config, **settings)
    label_files = LabelFiles.named(
        train,
        valid,
        test,
        format=resolved.label_format(columns, validation),
        skip_missing=skip_missing,
        require=require,
        ids=ids,
    )
    return run_training(gather_inputs(cache, label_files), out, resolved, validation).result


@takes_paths
def ablate(
    cache: Caches,
    train: StrPath,
    valid: StrPath,
    out: StrPath,
    *,
    rows: StrPath | Sequence[Row] | None = None,
    streams: bool = False,
    seeds: int = 3,
    config: StrPath | None = None,
    skip_missing: bool = False,
    require: Sequence[str] = (),
    ids: Sequence[str] = (),
    **settings: Any,
) -> Ablation | StreamAblation:
    """Train rows of settings that differ in one thing each; by default those of the paper's Table 1.

    Args:
        cache: one cache, several with equal fingerprints, or these by stream: `{"audio": "a.zarr", "face": "f.zarr"}`.
        train: label CSV of the training split.
        valid: label CSV of the validation split, on which the rows are compared.
        out: folder; gets a folder of seeds per row, ablation.csv and ablation.md. Called again it resumes.
        rows: other rows, or a TOML file of them.
        streams: train the head of `config` and `settings` on every subset of the streams instead.
        seeds: runs per row.
        config: TOML file of the settings that the rows have in common.
        skip_missing: leave out labelled clips that the cache does not hold, or that lack a required stream.
        require: names of streams that every labelled clip must have.
        ids: `NAME=REGEX` for each stream whose ids differ from those of the labels, or "aff-wild2".
        **settings: targets, rater, group_by and settings as for `train_head`; an option of a head goes to the rows
            whose head has it.

    Raises:
        EmiError: see `train_head.protocols.ablate`.
    """
    columns, validation = take(LabelColumns, settings), take(Validation, settings | {"seeds": seeds})
    settings.pop("group_by", None)
    refuse((streams and rows is not None, "streams and rows do not go together; leave one out"))
    chosen = PAPER_ROWS if rows is None else read_rows(rows) if isinstance(rows, str | os.PathLike) else rows
    chosen = [Row("streams")] if streams else chosen
    resolved = rows_settings(chosen, config, **settings)
    label_files = LabelFiles.named(
        train,
        valid,
        format=resolved[0][1].label_format(columns, validation),
        skip_missing=skip_missing,
        require=require,
        ids=ids,
    )
    inputs = gather_inputs(cache, label_files)
    if streams:
        return ablate_streams(inputs, out, resolved[0][1], seeds)
    return run_ablation(inputs, out, resolved, seeds, streams=rows_streams(chosen))


@takes_paths
def ensemble(
    runs: Sequence[StrPath],
    out: StrPath,
    *,
    weights: Sequence[float] | None = None,
    labels: StrPath | None = None,
    centre: bool = False,
) -> EnsembleResult:
    """Make a folder that predicts the mean of finished runs, of any heads, features and backbones.

    Args:
        runs: run folders of the same targets that predicted the same clips; they stay where they are.
        out: folder; `load(out)` takes it.
        weights: what each counts; all alike by default.
        labels: labels of the validation clips, where the file that the runs record is gone or has changed.
        centre: of predictions per frame, move each run's to a common level first (CCC centring).

    Raises:
        EmiError: see `train_head.protocols.ensemble.ensemble`.
    """
    return make_ensemble(runs, out, weights=weights, labels=labels, centre=centre)


@takes_paths
def sweep(
    cache: Caches,
    train: StrPath,
    valid: StrPath,
    out: StrPath,
    space: "StrPath | Space",
    *,
    config: StrPath | None = None,
    skip_missing: bool = False,
    require: Sequence[str] = (),
    ids: Sequence[str] = (),
    **settings: Any,
) -> "SweepResult":
    """Try many heads and settings on cached features, and train the best few again.

    Call it under `if __name__ == "__main__":`, as the worker processes import the caller's script.

    Args:
        cache: the features; of several streams one each, as for `train_head`.
        train: label CSV of the training split.
        valid: label CSV by which trials are compared.
        out: run folder; gets trials.csv, best.toml, report.html, and the best trials' runs. Called again it resumes.
        space: TOML file of what is tried; see `train_head.sweep.space`.
        config: TOML file of the settings that the space does not name.
        skip_missing: leave out labelled clips that the cache does not hold, or that lack a required stream.
        require: names of streams that every labelled clip must have.
        ids: `NAME=REGEX` for each stream whose ids differ from those of the labels, or "aff-wild2".
        **settings: fields of `train_head.sweep.settings.SweepSettings` (trials, jobs, pool, top, seeds, …);
            targets, rater, group_by as for `train_head`; and settings of every trial that the space does not name.

    Raises:
        EmiError: see `train_head.sweep.sweep.sweep`.
    """
    from train_head.sweep.space import Space, read_space
    from train_head.sweep.sweep import sweep as run_sweep

    how, columns = take(SweepSettings, settings), take(LabelColumns, settings)
    validation = Validation(group_by=settings.pop("group_by", None))
    found = space if isinstance(space, Space) else read_space(space, config, **settings)
    label_files = LabelFiles.named(
        train,
        valid,
        format=found.settings({}).label_format(columns, validation),
        skip_missing=skip_missing,
        require=require,
        ids=ids,
    )
    return run_sweep(cache, label_files, out, found, how)


@takes_paths
def finetune(
    media: StrPath,
    train: StrPath,
    valid: StrPath | None,
    out: StrPath,
    *,
    backbone: str,
    revision: str | None = None,
    config: StrPath | None = None,
    test: StrPath | None = None,
    init_head: StrPath | None = None,
    audio: StrPath | None = None,
    crops: StrPath | None = None,
    media_root: StrPath | None = None,
    cache: Caches | None = None,
    skip_missing: bool = False,
    require: Sequence[str] = (),
    ids: Sequence[str] = (),
    **settings: Any,
) -> "TrainResult | ProtocolResult":
    """Train backbone and head together, end to end; called again it resumes.

    Args:
        media: a folder, a CSV or a list, as for `extract`.
        train: label CSV of the training split.
        valid: label CSV by which the best epoch is chosen; with folds, more clips to cut, or None.
        out: run folder; once finished, `extract(…, backbone=out)` and `load(out)` take it.
        backbone: name, Hugging Face id or folder.
        revision: branch, tag or commit of an id; the main branch by default.
        config: TOML file of settings.
        test: CSV of a third split to predict; its targets may be missing.
        init_head: run folder of a head that was trained on this backbone's cached features, to start from.
        audio: folder of the decoded audio, which runs may share.
        crops: folder of the crops of faces, which runs may share.
        media_root: where the paths of a CSV or list start.
        cache: features of other streams, which stay as they are, by name: `{"text": "t.zarr"}`; the head reads them
            beside those of the backbone, whose stream is named by its modality (`audio` or `face`).
        skip_missing: leave out labelled clips whose media are missing or unreadable, or that lack a required stream,
            instead of refusing.
        require: names of streams that every labelled clip must have.
        ids: how ids of labels become those of a cached stream, as for `train_head`.
        **settings: fields of `emi.finetuning.settings.FinetuneSettings` (freeze, backbone_lr, lora, …), and
            everything that `train_head` takes. As for `extract`, None of `max_seconds` is a whole clip, and of `fps`
            every frame.

    Raises:
        EmiError: see `emi.finetuning.start.finetune`.
    """
    from emi.finetuning import start
    from emi.finetuning.settings import WORDS

    columns, validation = take(LabelColumns, settings), take(Validation, settings)
    typed = {name: WORDS.get(name) if value is None else value for name, value in settings.items()}
    resolved, tuning = start.resolve_with_head(config, init_head, **typed)
    form = resolved.label_format(columns, validation)
    data = start.FinetuneData(
        media=media,
        label_files=LabelFiles.named(
            train, valid, test, format=form, skip_missing=skip_missing, require=require, ids=ids
        ),
        backbone=backbone,
        revision=revision,
        init_head=init_head,
        audio=audio,
        crops=crops,
        media_root=media_root,
        cache=cache,
    )
    return start.finetune(data, out, resolved, tuning, validation).result


@takes_paths
def table1(
    media: StrPath | None,
    train: StrPath,
    valid: StrPath,
    out: StrPath,
    *,
    backbone: str | None = None,
    face_backbone: str = "mtcnn",
    cache: Caches | None = None,
    test: StrPath | None = None,
    seeds: int = 3,
    config: StrPath | None = None,
    media_root: StrPath | None = None,
    skip_missing: bool = False,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> "Table1":
    """Run the paper's Table 1 on any data, resumable row by row; rows that cannot be made are left out.

    Args:
        media: a folder, a CSV or a list, as for `extract`; None where all features are given.
        train: label CSV of the training split.
        valid: label CSV of the validation split.
        out: folder; gets one folder of seeds per row, table1.csv, table1.md and table1.svg.
        backbone: of the audio: name, Hugging Face id or folder; needed with media unless cache has the audio.
        face_backbone: of the faces in the media; "none" leaves the rows with faces out.
        cache: features to take instead of extracting them: `{"audio": "a.zarr", "face": "f.zarr"}`, or one of these.
        test: CSV of a third split with targets; with it the unfrozen rows are trained on train and valid as well.
        seeds: runs per row.
        config: TOML file of settings that the rows have in common.
        media_root: where the paths of a CSV or list start.
        skip_missing: leave out labelled clips whose media are missing or unreadable.
        reporter: hears of rows, media, runs and epochs.
        **settings: of the heads and of the backbone, as for `finetune`; targets, rater, group_by.

    Raises:
        EmiError: see `emi.finetuning.start.finetune`.
    """
    from emi.finetuning.settings import resolve
    from emi.paper_table.features import TableData
    from emi.paper_table.run import table1 as run_table

    columns, validation = take(LabelColumns, settings), Validation(group_by=settings.pop("group_by", None))
    form = resolve(config, **settings)[0].label_format(columns, validation)
    label_files = LabelFiles.named(train, valid, test, format=form, skip_missing=skip_missing)
    data = TableData(
        label_files=label_files,
        media=media,
        backbone=backbone,
        face_backbone=face_backbone,
        media_root=media_root,
        cache=cache,
    )
    return run_table(data, out, seeds=seeds, config=config, reporter=reporter, **settings)
