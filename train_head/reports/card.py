"""The model card of a run: what it is, what it was made from, how well it does, and what it must not be used for."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from cache.fingerprint import flattened
from cache.licences import UNKNOWN, Licence, all_of
from cache.system.atomic_file import write_atomically
from train_head.data.label_format import range_text
from train_head.data.splits import Split
from train_head.errors import LabelError
from train_head.evaluation.labelled import intervals_of
from train_head.evaluation.metrics import METRICS, Intervals, Report, mean_of
from train_head.heads import HEADS, head_options
from train_head.reports.tables import OVER_TARGETS, licence_line
from train_head.reports.usage import usage_of
from train_head.runs import run_folder
from train_head.runs.inputs import Inputs, StreamInfo
from train_head.runs.result import TrainResult
from train_head.targets import mean_score
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings

TEMPLATE = "card_template.md"
PAPER_BACKBONE = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
"""Of arXiv 2403.11879, section 3."""
OF_THE_MACHINE = frozenset({"seed", "device", "precision", "label_scale", "label_range"})
"""Settings in which a run does not depart from the paper."""
IN_WORDS = {"lstm.hidden": "the input's width"}
"""What the paper has in settings whose default stands for something else."""
FEW_CLIPS = 100
HUB_METRICS = {"pearsonr": "pearson", "ccc": "ccc", "mae": "mae"}
"""Names of the metrics on the Hugging Face Hub, and in a `Report`."""


def write_card(settings: TrainSettings, inputs: Inputs, result: TrainResult) -> None:
    """Write README.md into a run folder that holds its predictions; what is drawn there already is embedded.

    Args:
        settings: of the run, resolved.
        inputs: what it was made from.
        result: how it went.
    """
    intervals: dict[str, Intervals] = {}
    for name, predicted in result.predictions.items():
        labels = inputs.splits[name].labels
        if labels.names:
            with contextlib.suppress(LabelError):  # a single group has no interval
                intervals[name] = intervals_of(predicted, labels, labels.groups)
    write_atomically(result.folder / run_folder.CARD, model_card(settings, inputs, result, intervals).encode())


def model_card(
    settings: TrainSettings,
    inputs: Inputs,
    result: TrainResult,
    intervals: Mapping[str, Intervals] | None = None,
) -> str:
    """Return the card: front matter of the Hugging Face Hub, then Markdown; every number is computed from the run.

    Args:
        settings: of the run, resolved.
        inputs: what it was made from.
        result: how it went; pictures that its folder holds are linked.
        intervals: confidence intervals by split, "valid" and "test"; without them the tables have no such column.
    """
    streams, labels = inputs.source.streams, inputs.splits["train"].labels
    present = labels.values[~np.isnan(labels.values)]
    reports = {"validation": result.report} | ({"test": result.test_report} if result.test_report else {})
    template = Environment(
        loader=PackageLoader("train_head.reports", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(TEMPLATE)
    return template.render(
        settings=settings,
        inputs=inputs,
        result=result,
        intervals={"valid": None, "test": None, **(intervals or {})},
        front_matter=front_matter(settings, all_of([info.licence for info in streams.values()]), reports),
        streams=streams,
        backbones=[info.backbone for info in streams.values()],
        minutes={name: minutes(streams, split) for name, split in inputs.splits.items()},
        scale=range_text(settings.label_range),
        watched=any(mean_score(record) is not None for record in result.history),
        score=labels.targets.score_name,
        usage=usage_of(inputs, settings),
        over_targets=OVER_TARGETS,
        parameters=parameters(settings, inputs),
        frames_per_second=np.median([record["frames_per_second"] for record in result.history]),
        departures=departures(settings),
        paper_backbone=PAPER_BACKBONE,
        pictures={picture.stem for picture in result.folder.glob("*.svg")},
        labels=labels,
        label_scale=range_text(labels.range),
        lowest=100 * (present == labels.range[0]).mean(),
        missing=labels.values.size - present.size,
        licences=[licence_line(info.backbone, info.licence) for info in streams.values()],
        few_clips=FEW_CLIPS,
    )


def front_matter(settings: TrainSettings, licence: Licence, reports: Mapping[str, Report]) -> ModelCardData:
    """Return what the Hugging Face Hub reads of a model card: licence, tags, and the metrics that are defined.

    Args:
        settings: of the run.
        licence: of the backbone's weights, which the head inherits.
        reports: by split.
    """
    scores = [
        EvalResult(
            task_type="regression",
            dataset_type="labels",
            dataset_name=f"{split} labels",
            dataset_split=split,
            metric_type=name,
            metric_name=f"{METRICS[metric]}, {target}",
            metric_value=value,
        )
        for split, report in reports.items()
        for name, metric in HUB_METRICS.items()
        for values in [report.values(metric)]
        for target, value in zip((*report.names, OVER_TARGETS), (*values, mean_of(values)), strict=True)
        if value is not None
    ]
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.name.lower())
    listed = licence.commercial_use == "yes" or slug.startswith("cc-") or licence == UNKNOWN
    return ModelCardData(
        license=slug if listed else "other",
        license_name=None if listed else slug,
        tags=["emotional-mimicry-intensity", settings.head],
        metrics=list(HUB_METRICS),
        model_name=f"{settings.head} head",
        eval_results=scores,
    )


def minutes(streams: Mapping[str, StreamInfo], split: Split) -> float | None:
    """Return the minutes of a split, by the first stream whose rows have a fixed hop; None where none has."""
    for name, info in streams.items():
        if info.row_seconds is not None:
            return int(split.streams[name].lengths.sum()) * info.row_seconds / 60
    return None


def parameters(settings: TrainSettings, inputs: Inputs) -> int:
    """Trained numbers of the head, counted without memory or random draws for them."""
    with torch.device("meta"):
        labels, dims = inputs.splits["train"].labels, {name: info.dim for name, info in inputs.source.streams.items()}
        predictor = Predictor(settings, dims, len(labels.names), by_frame=labels.by_frame)
    return sum(p.numel() for p in predictor.parameters())


def departures(settings: TrainSettings) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the paper's: name to (this run's, the paper's; None where it says nothing of them).

    Options of a head that is not the paper's are compared with their defaults.
    """
    paper = flattened(TrainSettings().to_toml())
    usual = flattened({name: asdict(head_options(name, {})) for name in HEADS}) | paper
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in flattened(settings.to_toml()).items():
        of_all = re.sub(r"^streams\.[^.]+\.", "", key)
        if key not in OF_THE_MACHINE and value not in (usual.get(of_all), {}):
            found[key] = (value, IN_WORDS.get(of_all, paper.get(of_all)))
    return found
