"""Finished runs as one: the mean of what they predict, whatever heads and features they have."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.licences import LICENCE, Licence, all_of, licence_of_run
from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.label_format import recorded_format
from train_head.data.labels import Labels
from train_head.data.matching import align, check_same_clips, match_clips, predicted_rows
from train_head.data.predictions import prediction_file, read_folder, stored_file, write_folder, write_predictions
from train_head.data.reading import read_any_labels, read_beside
from train_head.errors import LabelError, RunFolderError, TrainSettingsError, refuse
from train_head.evaluation.baselines import LABELS_FOLDS, training_mean
from train_head.evaluation.labelled import report_of
from train_head.evaluation.metrics import METRICS
from train_head.protocols.result import SUMMARY, Scored, listed_members, score, write_ensemble
from train_head.reports.tables import OVER_TARGETS, cell, text_table
from train_head.reports.usage import how_to_predict
from train_head.runs import run_folder
from train_head.runs.centring import centred_mean
from train_head.runs.label_rows import has_clock
from train_head.runs.load import TrainedHead, load_heads, members_of
from train_head.targets import FRAME

SPLITS = {
    "valid": "validation",
    "folds": "all clips of the folds, each predicted by runs that did not train on it",
    "test": "test",
}
"""What a run may have predicted, and how it is called."""
SAME = ("label_scale", "label_range")
"""Settings without which the numbers of two runs mean different things."""


@dataclass(frozen=True, kw_only=True)
class EnsembleResult:
    """An ensemble of finished runs.

    Attributes:
        folder: `emi.load` takes it.
        members: places of the runs, seen from the folder.
        weights: what each counts in the mean; they sum to 1.
        scored: by split, figures of the members and of their mean; splits without labels are left out.
        nothing_to_do: whether all was there before.
    """

    folder: Path
    members: tuple[str, ...]
    weights: tuple[float, ...]
    scored: Mapping[str, Scored]
    nothing_to_do: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        runs = [
            {"name": name, "weight": weight, **{split: s.members[i].to_dict() for split, s in self.scored.items()}}
            for i, (name, weight) in enumerate(zip(self.members, self.weights, strict=True))
        ]
        return {"kind": "ensemble", "members": runs} | {split: s.to_dict() for split, s in self.scored.items()}

    def table(self) -> str:
        """Plain text: per split the figures of each run, and of their mean with intervals."""
        parts = []
        for split, scored in self.scored.items():
            parts += [f"{SPLITS[split]}, {METRICS[scored.metric]} of each run:\n{self._runs(scored)}"]
            together = f"ensemble of the {len(self.members)} runs (their predictions averaged)"
            parts += [f"{SPLITS[split]}, {together}:\n{scored.table()}"]
        return "\n\n".join([*parts, *([] if {"valid", "folds"} & self.scored.keys() else [UNJUDGED])])

    def _runs(self, scored: Scored) -> str:
        rows = [
            [name, f"{weight:.3f}", cell(report.mean(scored.metric)), *map(cell, report.values(scored.metric))]
            for name, weight, report in zip(self.members, self.weights, scored.members, strict=True)
        ]
        return text_table(["run", "weight", OVER_TARGETS, *scored.report.names], rows)


UNJUDGED = "There is no validation: these runs have predicted no clips that were kept from training."


@dataclass(frozen=True)
class _Run:
    """A finished run as its folder records it."""

    place: Path
    config: Mapping[str, Any]
    data: Mapping[str, Any]

    def predictions(self, split: str) -> Path:
        """Return the CSV or folder of what it predicts of a split."""
        return stored_file(self.place, f"predictions_{split}")


def ensemble(
    runs: Sequence[StrPath],
    out: StrPath,
    *,
    weights: Sequence[float] | None = None,
    labels: StrPath | None = None,
    centre: bool = False,
) -> EnsembleResult:
    """Make a folder that predicts the mean of finished runs; they stay where they are.

    Args:
        runs: run folders of the same targets that predicted the same clips; folders of seeds, folds or ensembles too.
            One such folder alone stands for its runs; folds have the clips of the test split in common.
        out: gets ensemble.toml, the mean of each predictions file that all have, summary.json, README.md.
        weights: one per run; all alike by default.
        labels: labels of the validation clips, where the file that the runs record is gone or has changed.
        centre: move each run's predictions of a clip to a common level first, see `train_head.runs.centring`; for
            labels per frame.

    Raises:
        TrainSettingsError: fewer than two runs, one given twice, weights that are none, or `centre` with one prediction
            per clip.
        RunFolderError: a run is not finished, their targets differ, one is of clips and another of frames, or the
            folder holds something else.
        LabelError: their clips or labels differ, or the labels are gone.
    """
    if len(runs) == 1:
        runs = [Path(runs[0]) / name for name in listed_members(Path(runs[0]))] or runs
    folder, shares = Path(out), _shares(runs, weights)
    configs = [run_folder.read_config_file(Path(run)) for run in runs]
    found = [_Run(Path(run), config, config.get("data", {})) for run, config in zip(runs, configs, strict=True)]
    if folder.resolve() in {run.place.resolve() for run in found}:
        raise TrainSettingsError(f"{out} is one of the runs; give the ensemble another --out")
    _check_alike(found)
    by_frame = found[0].data.get("resolution") == FRAME
    refuse((centre and not by_frame, "--centre is for predictions per frame, whose level it moves; leave it out"))
    heads = [head for run in found for head, _ in load_heads(run.place)]
    splits = [split for split in SPLITS if _all_have(found, split)]
    truths = {split: _labels(found, split, labels if split == "valid" else None) for split in splits}
    values = {split: _values(found, split) for split in splits}
    names = [os.path.relpath(run.place.resolve(), folder.resolve()) for run in found]
    config = _config(found, names, shares, centre)
    run_folder.prepare_folder(folder, config)
    before = _contents(folder)
    scored = {}
    for split, predicted in values.items():
        stacked = np.stack([part.values for part in predicted]).astype(np.float64)
        lengths = predicted[0].lengths.tolist()
        mean = centred_mean(stacked, shares, lengths) if centre else np.average(stacked, 0, shares)
        together = replace(predicted[0], values=mean.astype(np.float32))
        write_predictions(prediction_file(folder, split, together), together, together.names, together.values)
        truth = truths[split]
        if truth is not None:
            baseline, _ = training_mean(found[0].predictions(split), truth)
            reports = [report_of(align(part, truth), truth, baseline) for part in predicted]
            scored[split] = score(align(together, truth), truth, reports, baseline)
    if "folds" in splits:
        _copy(stored_file(found[0].place, LABELS_FOLDS), folder)
    done = EnsembleResult(folder=folder, members=tuple(names), weights=shares, scored=scored)
    write_atomically(folder / SUMMARY, (json.dumps(done.to_dict(), indent=2) + "\n").encode())
    write_atomically(folder / run_folder.CARD, _card(done, found, heads).encode())
    write_ensemble(folder, "ensemble", names, None if weights is None else shares, centre=centre)
    return replace(done, nothing_to_do=_contents(folder) == before)


def _shares(runs: Sequence[StrPath], weights: Sequence[float] | None) -> tuple[float, ...]:
    places = [Path(run).resolve() for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    weights = [1.0] * len(runs) if weights is None else list(weights)
    refuse(
        (len(runs) < 2, f"an ensemble needs two runs or more, got {len(runs)}"),
        (twice is not None, f"{twice} is given twice; name it once, and give it a larger one of the --weights"),
        (len(weights) != len(runs), f"--weights takes one number per run: {len(runs)}, got {len(weights)}"),
        (
            not all(0 < weight < float("inf") for weight in weights),
            f"--weights must be above 0, got {', '.join(f'{weight:g}' for weight in weights)}",
        ),
    )
    return tuple(weight / sum(weights) for weight in weights)


def _check_alike(runs: Sequence[_Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        kinds = ["frames" if r.data.get("resolution") == FRAME else "clips" for r in (first, run)]
        if kinds[0] != kinds[1]:
            raise RunFolderError(
                f"{first.place} predicts {kinds[0]}, and {run.place} {kinds[1]}; they cannot be averaged"
            )
        one, other = (tuple(r.data.get("targets", ())) for r in (first, run))
        settings = ((key, first.config.get(key), run.config.get(key)) for key in SAME)
        refuse(
            (
                one != other,
                f"{first.place} predicts {', '.join(one)}, and {run.place} {', '.join(other)}; only runs of the same "
                "targets, in the same order, can be averaged",
            ),
            *(
                (
                    there != here,
                    f"{first.place} was trained with {key} {there}, and {run.place} with {here}; their predictions "
                    "cannot be averaged",
                )
                for key, there, here in settings
            ),
            error=RunFolderError,
        )


def _all_have(runs: Sequence[_Run], split: str) -> bool:
    """Whether all runs have predicted a split; of validation and folds, all or none must have.

    Different folds of one cross-validation have no validation clips in common.
    """
    numbers = [run.config.get("protocol", {}).get("number") for run in runs if _is_fold(run)]
    if split == "valid" and len(set(numbers)) == len(runs):
        return False
    having = [run for run in runs if run.predictions(split).exists()]
    lacking = [run.place for run in runs if not run.predictions(split).exists()]
    if having and lacking and split != "test":
        raise LabelError(
            f"{having[0].place} has {having[0].predictions(split).name}, and {lacking[0]} has none; only runs that "
            "predicted the same clips can be averaged"
        )
    return not lacking


def _is_fold(run: _Run) -> bool:
    return run.config.get("protocol", {}).get("kind") == "fold"


def _values(runs: Sequence[_Run], split: str) -> list[Labels]:
    """The predictions of each run, with the clips and rows of the first."""
    first, *others = [read_any_labels(run.predictions(split), check_range=False) for run in runs]
    for one in others:
        check_same_clips(first, one, "averaged")
        predicted_rows(first, one)  # refuses other rows
    return [first, *(replace(first, path=one.path, values=align(one, first)) for one in others)]


def _labels(runs: Sequence[_Run], split: str, given: StrPath | None) -> Labels | None:
    """The labels of a split, or None where it has none; the targets are those of the runs."""
    first = runs[0]
    place = Path(given) if given is not None else _recorded(runs, split)
    names = tuple(first.data["targets"])
    form = recorded_format(first.config)
    rater, group_by = (next((run.data[key] for run in runs if key in run.data), None) for key in ("rater", "group_by"))
    predicted = read_any_labels(first.predictions(split), check_range=False)
    truth = read_beside(split, place, replace(form, targets=names, rater=rater, group_by=group_by), predicted)
    if not truth.names:
        return None
    kept = truth.take([i for i, there in enumerate(match_clips(truth, predicted)) if there is not None])
    if not len(kept):
        raise LabelError(f"{place} holds none of the clips that {first.place} predicted; give theirs with --labels CSV")
    return predicted_rows(kept, predicted)


def _recorded(runs: Sequence[_Run], split: str) -> Path:
    if split == "folds":
        return stored_file(runs[0].place, LABELS_FOLDS)
    recorded = {run.data.get(f"{split}_sha256"): Path(run.data.get(split, "")) for run in runs}
    if len(recorded) > 1:
        one, other = list(recorded.values())[:2]
        raise LabelError(
            f"{runs[0].place} and others were made with different {split} labels ({one} and {other}); train them with "
            "the same file" + (", or name the one to judge them on with --labels CSV" if split == "valid" else "")
        )
    ((digest, place),) = recorded.items()
    if place.exists() and run_folder.file_sha256(place) == digest:
        return place
    what = "has changed since they were made" if place.exists() else "is gone"
    where = "name it with --labels CSV" if split == "valid" else "restore it from a copy"
    raise LabelError(f"the {split} labels of these runs, {place}: the file {what}; {where}")


def _config(runs: Sequence[_Run], names: Sequence[str], shares: Sequence[float], centre: bool) -> dict[str, Any]:
    first = runs[0]
    keys = ("valid", "valid_sha256", "test", "test_sha256", "targets", "rater", "group_by", "resolution")
    return {
        **{key: first.config[key] for key in SAME if key in first.config},
        "data": {key: first.data[key] for key in keys if all(key in run.data for run in runs)},
        "protocol": {"kind": "ensemble", "members": list(names), "weights": list(shares)}
        | ({"centre": True} if centre else {}),
        LICENCE: _licence(runs).to_dict(),
        "versions": run_folder.versions(),
    }


def _licence(runs: Sequence[_Run]) -> Licence:
    return all_of([licence_of_run(run.config) for run in runs])


def _copy(place: Path, folder: Path) -> None:
    """Copy a file or folder of labels into a folder."""
    if place.is_dir():
        write_folder(folder / place.name, read_folder(place))
    else:
        write_atomically(folder / place.name, place.read_bytes())


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _card(result: EnsembleResult, runs: Sequence[_Run], heads: Sequence[TrainedHead]) -> str:
    names = ", ".join(runs[0].data["targets"])
    rows = "\n".join(
        f"| [{name}]({name}/README.md) | {weight:.3f} | {len(members_of(run.place))} | {_made(run)} |"
        for name, weight, run in zip(result.members, result.weights, runs, strict=True)
    )
    made = [stream.features["fingerprint"] for head in heads for stream in head.streams.values()]
    usage = how_to_predict(made, by_frame=heads[0].by_frame, timed=all(map(has_clock, heads)))
    chosen = (
        "The best epochs of these runs were chosen on the validation clips, and perhaps the runs and their weights "
        "too: the validation figures are optimistic for new clips.\n"
    )
    return f"""# Mean of {len(runs)} runs for {names}

| run | weight | heads | made of |
|---|---|---|---|
{rows}

```
{result.table()}
```

{chosen if "valid" in result.scored else ""}
## Use

{usage}

Each run that `{run_folder.ENSEMBLE}` lists predicts, and the predictions are averaged; the runs must stay where they
are. Intensities describe how strongly an emotion is *shown*; they say nothing about what a person feels.

The backbones' weights: {_licence(runs)}, which applies to what is made with them.
"""


def _made(run: _Run) -> str:
    """Head and backbone, where the run has one of each."""
    features, tuned = run.config.get("features", {}), run.config.get("backbone", {})
    backbone = features.get("fingerprint", {}).get("backbone") or tuned.get("name")
    head = run.config.get("head")
    parts = [f"head `{head}`"] if head else ["an ensemble"]
    return " on ".join([*parts, *([f"{'fine-tuned ' if tuned else ''}`{backbone}`"] if backbone else [])])
