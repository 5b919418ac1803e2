"""A sweep from label files to its best head: many trials on cheap features, then the best few on the full ones."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from cache import fingerprint as fp
from cache.derive.derived import OnProgress, derive
from cache.paths import StrPath
from cache.reader import FeatureCache, open_cache
from cache.system.atomic_file import write_atomically
from train_head.data.gather import missing_clips, resolve_splits
from train_head.data.labels import Labels
from train_head.data.links import LinkedCache, linked, read_links
from train_head.data.names import UNNAMED, Caches, by_stream
from train_head.data.splits import Split, lacking_streams
from train_head.errors import RunFolderError, TrainSettingsError, check_known
from train_head.heads import HEADS
from train_head.protocols.run import train_seeds
from train_head.runs import run_folder
from train_head.runs.changes import changed, differing, option
from train_head.runs.inputs import LabelFiles, check_disjoint_splits, gather_inputs
from train_head.sweep.report import write_report
from train_head.sweep.result import TRIALS_CSV, Retrained, SweepResult, trial_score, write_trials
from train_head.sweep.settings import SweepSettings
from train_head.sweep.space import Space
from train_head.sweep.storage import OUTCOME, JournalStudy, SharedStudy, counted
from train_head.sweep.trials import OnStatus, Status, Trials
from train_head.sweep.worker import OpenSplits, leave_to_the_parent
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TABLES, check_stream_name

SWEEP, BEST_TOML, BEST = "sweep.json", "best.toml", "best"
CHEAP, SHARED = "cheap.zarr", "shared"
"""The derived cache, and the memory map of the trials' splits, which is removed at the end."""
SHARED_BY_TRIALS = ("sampler", "pruner", "seed", "pool", "pca", "clips")
"""Settings of a sweep that all its trials have in common."""


def sweep(
    cache: Caches,
    label_files: LabelFiles,
    out: StrPath,
    space: Space,
    settings: SweepSettings | None = None,
    *,
    on_derive: OnProgress | None = None,
    on_status: OnStatus | None = None,
    reporter: Reporter = SILENT,
) -> SweepResult:
    """Try settings, and train the best again; called again it resumes, or adds trials.

    Args:
        cache: the features; one cache per stream.
        label_files: the splits "train" and "valid", by which trials are compared; with groups, they may share none.
        out: run folder; gets trials.csv, best.toml, report.html, and the best trials' runs in best/.
        space: what is tried.
        settings: how.
        on_derive: called while the trials' smaller features are made, where they see such; see `cache.derive`.
        on_status: called after each trial, and every half second.
        reporter: hears of the runs of the best trials.

    Raises:
        LabelError, TrainSettingsError, CacheError: before any trial.
        RunFolderError: the folder holds something else, or another sweep runs in it.
        WorkerStartError: the worker processes cannot start, for want of a main guard above all.
    """
    leave_to_the_parent()
    settings, folder = settings or SweepSettings(), Path(out)
    caches = _one_per_stream(cache)
    _check_streams(space, caches)
    labels = label_files.read()
    check_disjoint_splits(labels)
    identity, train = _identity(caches, label_files, labels, space, settings)
    _prepare(folder, identity)
    name = "emi-" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    url = settings.storage
    with closing(
        SharedStudy(url, name, settings.heartbeat) if url is not None else JournalStudy(folder, name)
    ) as store:
        finished_before = sum(trial.state.is_finished() for trial in counted(store.study))
        lacking = label_files.skip_missing or len(caches) > 1
        cheap = {
            name: _trial_cache(name, path, train[name], lacking, folder, settings, on_derive)
            for name, path in caches.items()
        }
        open_data = partial(open_splits, cheap, label_files, folder / SHARED, settings.clips, settings.seed)
        status = _run_trials(store, space, settings, open_data, folder, on_status, reporter)
        best = _best_trials(store.study, space, settings.seed, folder)
        retrained = _retrain(best[: settings.top], caches, label_files, folder, space, settings, reporter)
        chosen = retrained[0].values if retrained else dict(best[0].params)
        streams = space.subset(chosen)
        result = SweepResult(
            folder=folder,
            score_name=labels["train"].targets.score_name,
            status=status,
            best=dict(best[0].params),
            best_streams=streams or (),
            retrained=tuple(retrained),
            nothing_to_do=finished_before >= settings.trials and all(one.result.nothing_to_do for one in retrained),
        )
        of_best = space.settings(chosen, seed=settings.seed).for_streams(streams or tuple(caches))
        note = f"# of the streams {' and '.join(streams)}: give the caches of these only\n" if streams else ""
        toml = note + tomli_w.dumps(of_best.to_toml())
        write_atomically(folder / BEST_TOML, toml.encode())
        write_report(result, store.study, {name: identity[name] for name in SHARED_BY_TRIALS}, toml)
    return result


def _one_per_stream(cache: Caches) -> dict[str, StrPath]:
    """Return the cache of each stream.

    Raises:
        TrainSettingsError: a stream has several; they can be merged.
    """
    found = by_stream(cache)
    for name, paths in found.items():
        if len(paths) > 1:
            raise TrainSettingsError(
                f"a sweep takes one cache per stream, and {', '.join(map(str, paths))} are given for "
                f"{'one' if name == UNNAMED else name}; merge them with `emi cache merge`"
            )
    return {name: paths[0] for name, paths in found.items()}


def _check_streams(space: Space, caches: Mapping[str, StrPath]) -> None:
    """Refuse a name that cannot be that of a stream, and settings or a choice of a stream that has no cache.

    Raises:
        TrainSettingsError: names it.
    """
    named = [name for name in caches if name != UNNAMED]
    for name in named:
        check_stream_name(name)
    check_known("stream or table in the space", sorted(space.streams), [*named, *HEADS, *TABLES])
    chosen = sorted({name for streams in space.subsets for name in streams})
    if chosen and not named:
        raise TrainSettingsError("`streams` in the space chooses among named caches; give each as --cache NAME=PATH")
    check_known("stream in `streams` of the space", chosen, named)


def _trial_cache(
    stream: str,
    cache: StrPath,
    train: Sequence[str],
    lacking: bool,
    folder: Path,
    settings: SweepSettings,
    on_progress: OnProgress | None,
) -> StrPath:
    """Return the cache of the trials: a derived one in the run folder where `pool` or `pca` ask for it, made once.

    The principal components are fitted on the training clips that the cache holds.

    Args:
        stream: name of the stream.
        cache: of the stream.
        train: names of the training clips in that cache.
        lacking: whether the cache may lack some of them.
        folder: of the sweep.
        settings: with `pool` and `pca`.
        on_progress: called after each clip.

    Raises:
        DeriveError: the recipe cannot be followed.
    """
    if settings.pool == 1 and settings.pca is None:
        return cache
    place = folder / (CHEAP if stream == UNNAMED else f"cheap-{stream}.zarr")
    derive(
        cache,
        place,
        pool=settings.pool,
        pca=settings.pca,
        train_ids=None if settings.pca is None else train,
        skip_missing=lacking,
        on_progress=on_progress,
    )
    return place


def open_splits(
    cache: Caches, label_files: LabelFiles, shared: Path, clips: int | None, seed: int
) -> Mapping[str, Split]:
    """Gather the trials' splits, or map what another process has gathered.

    Args:
        cache: of the trials, derived or not, by stream.
        label_files: the splits "train" and "valid".
        shared: folder of the memory map that all workers read.
        clips: number of training clips, drawn with `seed`; None takes all.
        seed: of that draw.

    Raises:
        LabelError, CacheError: a file or a clip is missing or wrong.
    """
    splits = dict(gather_inputs(cache, label_files, shared=shared).splits)
    train = splits["train"]
    if clips is not None and clips < len(train):
        rows = np.random.default_rng(seed).permutation(len(train))[:clips]
        splits["train"] = train.take(sorted(rows.tolist()))
    return splits


def _run_trials(
    store: JournalStudy | SharedStudy,
    space: Space,
    settings: SweepSettings,
    open_data: OpenSplits,
    folder: Path,
    on_status: OnStatus | None,
    reporter: Reporter,
) -> Status:
    """Run the missing trials; trials.csv then lists all, also after an error."""
    trials = Trials(store, space, open_data, settings, on_status)
    if trials.status().finished < settings.trials:
        try:
            splits = open_data()  # fills the map that the workers share, and says here what is wrong with a file
            for sentence in lacking_streams(splits):
                reporter.note(sentence)
            trials.run()
        finally:
            shutil.rmtree(folder / SHARED, ignore_errors=True)
            write_trials(store.study, folder)
    return trials.status()


def _retrain(
    trials: Sequence[FrozenTrial],
    cache: Caches,
    label_files: LabelFiles,
    folder: Path,
    space: Space,
    settings: SweepSettings,
    reporter: Reporter,
) -> list[Retrained]:
    """Train the settings of trials with several seeds, each into best/trial-NUMBER; return the best first."""
    if not trials:
        return []
    inputs, retrained = gather_inputs(cache, label_files), []
    for trial in trials:
        place = folder / BEST / f"trial-{trial.number:04d}"
        of_trial, streams = space.settings(trial.params, seed=settings.seed), space.subset(trial.params)
        part = inputs if streams is None else inputs.of_streams(streams)
        result = train_seeds(part, place, of_trial, settings.seeds, reporter, reported_under=f"{place.name}/")
        values, value = dict(trial.params), trial_score(trial) or 0.0
        retrained.append(Retrained(number=trial.number, values=values, trial_score=value, result=result))
    return sorted(retrained, key=lambda one: one.score, reverse=True)


def _best_trials(study: Study, space: Space, seed: int, folder: Path) -> list[FrozenTrial]:
    """Return the trials with a defined score, best first, each with different settings.

    Complete trials come first, then pruned ones by the number of their epochs.

    Raises:
        TrainSettingsError: no trial has a score.
    """
    trials = counted(study)
    ended = [trial for trial in trials if trial_score(trial) is not None]
    if not ended:
        reasons = [trial.user_attrs.get(OUTCOME, {}).get("reason") for trial in trials]
        why = next((f"the first that failed says: {reason}" for reason in reasons if reason), "no trial has ended")
        raise TrainSettingsError(
            f"none of the {sum(trial.state.is_finished() for trial in trials)} trials learnt anything: {why}. "
            f"{folder} keeps {TRIALS_CSV}; change the space, and choose a new --out"
        )
    ended.sort(key=lambda trial: (-trial.user_attrs[OUTCOME]["epochs"], -(trial_score(trial) or 0.0), trial.number))
    ended.sort(key=lambda trial: -(trial.value or 0.0) if trial.state == TrialState.COMPLETE else 2.0)
    first: dict[str, FrozenTrial] = {}
    for trial in ended:
        of_trial = [asdict(space.settings(trial.params, seed=seed)), space.subset(trial.params)]
        first.setdefault(json.dumps(of_trial, sort_keys=True), trial)
    return list(first.values())


def _identity(
    caches: Mapping[str, StrPath],
    label_files: LabelFiles,
    labels: Mapping[str, Labels],
    space: Space,
    settings: SweepSettings,
) -> tuple[dict[str, Any], dict[str, Sequence[str]]]:
    """Return what must be equal for trials to belong to one sweep, and by stream the names of the training clips.

    `trials`, `jobs` and `top` may change.
    """
    with ExitStack() as opened:
        plain = {name: [opened.enter_context(open_cache(path))] for name, path in caches.items()}
        stores = linked(plain, read_links(label_files.ids))
        features = {name: fp.digest(store.fingerprint) for name, (store,) in stores.items()}
        found = resolve_splits(stores, labels)
        train = {name: _names_in(store, found["train"]) for name, (store,) in stores.items()}
        missing = {}
        for name, part in found.items():
            lacking = missing_clips(stores, part.ids, label_files.require).values()
            missing[name] = [part.ids[i] for i in set().union(*lacking)]
    identity = {
        "features": features.get(UNNAMED, features),
        **{f"{name}_sha256": run_folder.file_sha256(path) for name, path in label_files.files.items()},
        **{f"{name}_missing": sorted(clips) for name, clips in missing.items() if clips},
        **({"group_by": None} | label_files.format.to_dict()),
        **({"ids": list(label_files.ids)} if label_files.ids else {}),
        **{name: getattr(settings, name) for name in SHARED_BY_TRIALS},
        "space": space.to_dict(),
    }
    return identity, train


def _names_in(store: FeatureCache, labels: Labels) -> Sequence[str]:
    """Return the names by which a cache knows the clips of some labels."""
    return [store.own_id(clip) for clip in labels.ids] if isinstance(store, LinkedCache) else labels.filenames


def _prepare(folder: Path, identity: Mapping[str, Any]) -> None:
    """Create the folder, or check that it holds the same sweep."""
    path, wanted = folder / SWEEP, json.loads(json.dumps(identity))
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored != wanted:
            raise RunFolderError(
                f"{folder} holds another sweep: {'; '.join(sweep_changes(stored, wanted)) or 'its settings'}. Choose a "
                "new --out, or remove that folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is no sweep (it has no {SWEEP}); choose a new --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(wanted, indent=2) + "\n").encode())


def sweep_changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield one text per change, such as `--sampler (there 'tpe', now 'random')`, given two identities of sweeps."""
    found = {key: values for key, *values in differing(stored, wanted)}
    if "features" in found:
        yield "--cache (its features are others)"
    for name in ("train", "valid"):
        if f"{name}_sha256" in found:
            yield f"--{name} (its contents are others)"
        elif f"{name}_missing" in found and "features" not in found:
            yield f"which clips of --{name} the cache holds (--skip-missing, --require)"
    for key, values in found.items():
        if key not in ("features", "space") and not key.endswith(("_sha256", "_missing")):
            yield changed(f"--{key.replace('_', '-')}", *values)
    if "space" in found:
        for key, there, now in differing(*map(_tried, found["space"])):
            yield changed(f"{key} in --space", there, now)
        common = ({**space.get("config", {}), **space.get("base", {})} for space in found["space"])
        for key, there, now in differing(*common):
            yield changed(option(key), there, now)


def _tried(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each setting of a space is drawn from, or its one value."""
    return dict(space.get("fixed", {})) | {key: _range(drawn) for key, drawn in space.get("drawn", {}).items()}


def _range(distribution: Mapping[str, Any]) -> str:
    """Return what a setting is drawn from, given Optuna's JSON form."""
    fields = dict(distribution.get("attributes", {}))
    if "choices" in fields:
        return f"one of {', '.join(map(str, fields['choices']))}"
    scale = ", log" if fields.get("log") else ""
    step = f", step {fields['step']}" if fields.get("step") not in (None, 1) else ""
    return f"{fields.get('low')} to {fields.get('high')}{scale}{step}"
