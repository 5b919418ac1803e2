"""The runs of a protocol, and the files that they make together in the folder above them."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from cache.system.atomic_file import write_atomically
from train_head.data.labels import Labels, write_predictions
from train_head.errors import RunFolderError
from train_head.evaluation.intervals import bootstrap
from train_head.evaluation.metrics import Column, Report, evaluate, label_means
from train_head.protocols.result import ProtocolResult, Scored
from train_head.reports.tables import licence_line
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs
from train_head.runs.train import run_config
from train_head.training.settings import TrainSettings

SUMMARY = "summary.json"


def prepare_protocol(folder: Path, settings: TrainSettings, inputs: Inputs, protocol: Mapping[str, Any]) -> None:
    """Create the folder of several runs, or check that it holds the same ones; its config.toml is like a run's.

    Raises:
        RunFolderError: it holds something else.
    """
    run_folder.prepare_folder(folder, run_config(settings, inputs) | {"protocol": dict(protocol)})


def listed_members(folder: Path) -> tuple[str, ...]:
    """The runs that a finished protocol lists in ensemble.toml; empty where it is not finished."""
    path = folder / run_folder.ENSEMBLE
    if not path.is_file():
        return ()
    try:
        return tuple(tomllib.loads(path.read_text(encoding="utf-8"))["members"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove it, and the same command writes it anew") from error


def write_ensemble(folder: Path, kind: str, members: Sequence[str], weights: Sequence[float] | None = None) -> None:
    """List the runs whose predictions are averaged, by their places seen from the folder, with weights if not alike."""
    content = {"kind": kind, "members": list(members)} | ({} if weights is None else {"weights": list(weights)})
    write_atomically(folder / run_folder.ENSEMBLE, tomli_w.dumps(content).encode())


def write_mean(
    folder: Path, split: str, predictions: Sequence[NDArray[np.float32]], labels: Labels, train: Labels
) -> Scored | None:
    """Average the runs' predictions of a split into the folder's file.

    Args:
        folder: that holds the runs.
        split: "valid" or "test".
        predictions: (clips, targets) of each run.
        labels: of the split.
        train: what the runs were trained on.

    Returns:
        The scores; None where the split has no targets.
    """
    mean = np.stack(predictions).astype(np.float64).mean(0).astype(np.float32)
    write_predictions(folder / f"predictions_{split}.csv", labels, train.names, mean)
    if not labels.names:
        return None
    train_mean = label_means(train.values)
    reports = [evaluate(values, labels.values, labels.names, train_mean) for values in predictions]
    return score(mean, labels, reports, train_mean)


def score(
    predicted: NDArray[np.float32], labels: Labels, members: Sequence[Report], train_mean: Column | None
) -> Scored:
    """Score what runs predict together; the intervals resample groups where the labels have several.

    Args:
        predicted: (clips, targets).
        labels: of the same clips.
        members: metrics of each run.
        train_mean: mean of the training labels, as for `evaluate`.
    """
    return Scored(
        members=tuple(members),
        report=evaluate(predicted, labels.values, labels.names, train_mean),
        intervals=bootstrap(predicted, labels.values, labels.names, groups=several_groups(labels)),
    )


def several_groups(labels: Labels) -> tuple[str, ...] | None:
    """The groups of clips, where there are at least two to resample."""
    return labels.groups if labels.groups is not None and len(set(labels.groups)) > 1 else None


def write_summary(result: ProtocolResult, settings: TrainSettings, inputs: Inputs, title: str) -> None:
    """Write summary.json and README.md."""
    summary = json.dumps(result.to_dict(), indent=2) + "\n"
    write_atomically(result.folder / SUMMARY, summary.encode())
    write_atomically(result.folder / run_folder.CARD, _readme(result, settings, inputs, title).encode())


def _readme(result: ProtocolResult, settings: TrainSettings, inputs: Inputs, title: str) -> str:
    return f"""# {title}

Head `{settings.head}`, loss `{settings.loss}`; all settings are in `config.toml`, all numbers in `summary.json`.
Each run has its own model card: {", ".join(f"[{name}]({name}/README.md)" for name in result.members)}.

```
{result.table()}
```

The standard deviation is that of a sample. Pearson of an average of predictions is no average of Pearsons.

## Use

```
emi predict MEDIA --model THIS_FOLDER
```

averages the predictions of the runs that `{run_folder.ENSEMBLE}` lists. Intensities describe how strongly an emotion is
*shown*; they say nothing about what a person feels.

{licence_line(inputs.source.fingerprint["backbone"], inputs.source.licence)}
"""
