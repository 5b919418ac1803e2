"""The model card of a run: what it is, what it was made from, how well it does, and what it must not be used for."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCardData

from cache.licences import UNKNOWN, Licence
from cache.system.atomic_file import write_atomically
from train_head.data.label_format import range_text
from train_head.errors import LabelError
from train_head.evaluation.intervals import bootstrap
from train_head.evaluation.metrics import METRICS, Intervals, Report, mean_of
from train_head.heads import head_options
from train_head.reports.tables import OVER_TARGETS
from train_head.runs import run_folder
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings

if TYPE_CHECKING:
    from train_head.runs.inputs import Inputs
    from train_head.runs.train import TrainResult

PAPER_BACKBONE = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
"""Of arXiv 2403.11879, section 3."""
OF_THE_MACHINE = frozenset({"seed", "device", "precision", "label_scale", "label_range"})
"""Settings in which a run does not depart from the paper."""
FEW_CLIPS = 100
HUB_METRICS = {"pearsonr": "pearson", "ccc": "ccc", "mae": "mae"}
"""Names of the metrics on the Hugging Face Hub, and in a `Report`."""


def write_card(settings: TrainSettings, inputs: "Inputs", result: "TrainResult") -> None:
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
            try:
                intervals[name] = bootstrap(predicted, labels.values, labels.names, labels.groups)
            except LabelError:  # a single group has no interval
                continue
    card = model_card(settings, inputs, result, intervals)
    write_atomically(result.folder / run_folder.CARD, card.encode())


def model_card(
    settings: TrainSettings,
    inputs: "Inputs",
    result: "TrainResult",
    intervals: Mapping[str, Intervals] | None = None,
) -> str:
    """Return the card: front matter of the Hugging Face Hub, then Markdown; every number is computed from the run.

    Args:
        settings: of the run, resolved.
        inputs: what it was made from.
        result: how it went; pictures that its folder holds are linked.
        intervals: confidence intervals by split, "valid" and "test"; without them the tables have no such column.
    """
    intervals = intervals or {}
    source, splits, labels = inputs.source, inputs.splits, inputs.labels
    fingerprint = source.fingerprint
    minutes = {name: int(split.lengths.sum()) * source.row_seconds / 60 for name, split in splits.items()}
    rows = [f"| {n} | {len(s)} of {len(labels[n])} | {minutes[n]:.1f} |" for n, s in splits.items()]
    scale = range_text(settings.label_range)
    made = f"\n{source.note}\n" if source.note else ""
    watched = any(record["valid_mean_pearson"] is not None for record in result.history)
    chosen = f"was best by validation Pearson, {OVER_TARGETS}" if watched else "is kept, chosen by no clip"
    optimistic = "The best epoch was chosen on these clips, so the figures are optimistic for new ones.\n"
    test, reports = "", {"validation": result.report}
    if result.test_report:
        reports["test"] = result.test_report
        table = _table(result.test_report, intervals.get("test"))
        test = f"\n## Test\n\n{table}\n{_picture(result, 'scatter_test', 'Test labels and predictions')}"
    return f"""---
{front_matter(settings, source.licence, reports).to_yaml()}
---

# Head `{settings.head}` for {", ".join(result.report.names)}

Predicts intensities in {scale} of a clip from features of `{fingerprint["backbone"]}`{_made(fingerprint)}.
{made}
| split | clips | minutes |
|---|---|---|
{chr(10).join(rows)}

Trained with loss `{settings.loss}`, learning rate {settings.lr:g}, batch {settings.batch_size}, seed {settings.seed};
epoch {result.best_epoch} of {settings.stop_after or settings.epochs} {chosen}. All settings are in `config.toml`.

- Parameters: {parameters(settings, inputs):,}
- Seed: {settings.seed}
- Machine: {_machine(settings, result)}
- {_departures(settings, fingerprint["backbone"])}
{_picture(result, "curves", "Training loss and validation Pearson by epoch")}
## Validation

{optimistic if watched else "These clips chose nothing in training."}
{_table(result.report, intervals.get("valid"))}{_raters(result)}
{_picture(result, "scatter_valid", "Validation labels and predictions")}{test}
## Use

```
emi predict MEDIA --model THIS_FOLDER
```

## Limits

{_limits(inputs, result, intervals)}
"""


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


def parameters(settings: TrainSettings, inputs: "Inputs") -> int:
    """Trained numbers of the head, counted without memory or random draws for them."""
    with torch.device("meta"):
        predictor = Predictor(settings, inputs.source.dim, len(inputs.splits["train"].labels.names))
    return sum(p.numel() for p in predictor.parameters())


def departures(settings: TrainSettings) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the paper's: name to (this run's, the paper's).

    Options are compared with the defaults of the head they belong to.
    """
    paper = TrainSettings().to_toml() | {settings.head: asdict(head_options(settings.head, {}))}
    ours: dict[str, tuple[Any, Any]] = {}
    for key, value in settings.to_toml().items():
        inner = {f"{key}.{k}": (v, paper[key].get(k)) for k, v in value.items()} if isinstance(value, dict) else {}
        ours |= inner or {key: (value, paper.get(key))}
    return {key: pair for key, pair in ours.items() if pair[0] != pair[1] and key not in OF_THE_MACHINE}


def licence_line(backbone: str, licence: Licence) -> str:
    """Return a sentence on whether products of a backbone may be used commercially."""
    return (
        f"The weights of `{backbone}`: {licence}. Their licence applies to what is made with them, this head and its "
        "predictions among it."
    )


def _table(report: Report, intervals: Intervals | None) -> str:
    """Return the table of a split, and under it the notes on its figures."""
    notes = [f"- {note}" for note in (*report.notes, *(intervals.warnings if intervals else ()))]
    return "\n".join([report.markdown(intervals), *(["", *notes] if notes else [])])


def _departures(settings: TrainSettings, backbone: str) -> str:
    found = [f"`{key}` {_value(ours)} (paper: {_value(paper)})" for key, (ours, paper) in departures(settings).items()]
    text = "; ".join(found) if found else "none"
    features = "" if backbone == PAPER_BACKBONE else f". The paper's features are of `{PAPER_BACKBONE}`"
    return f"Settings that differ from the paper's (arXiv 2403.11879): {text}{features}"


def _machine(settings: TrainSettings, result: "TrainResult") -> str:
    seconds = sum(record["seconds"] for record in result.history)
    rate = np.median([record["frames_per_second"] for record in result.history])
    kind = "one CUDA GPU" if settings.device == "cuda" else "CPU"
    return f"{kind}, {settings.precision}; {seconds:.1f} s for {len(result.history)} epochs, {rate:,.0f} frames/s"


def _limits(inputs: "Inputs", result: "TrainResult", intervals: Mapping[str, Intervals]) -> str:
    report, fingerprint = result.report, inputs.source.fingerprint
    labels = inputs.splits["train"].labels
    present = labels.values[~np.isnan(labels.values)]
    low = labels.range[0]
    missing = f", and {labels.values.size - present.size} are missing" if present.size < labels.values.size else ""
    lines = [
        "Intensities describe how strongly an emotion is *shown*; they say nothing about what a person feels. Decide "
        "nothing about a person by them.",
        "What it does on other languages, cultures, ages, microphones or rooms than those of the training clips is not "
        "measured.",
        f"{100 * (present == low).mean():.0f} % of the training labels are {low:g}{missing}; predictions are not "
        f"clipped, and may lie outside {range_text(labels.range)}.",
        licence_line(fingerprint["backbone"], inputs.source.licence),
    ]
    if labels.unlabelled:
        lines.append(f"{labels.unlabelled} training clips have no label, and were left out.")
    if inputs.overlap:
        lines.append(f"{inputs.overlap}.")
    if "max_seconds" in fingerprint:
        lines.append(f"Of a longer clip it hears the first {fingerprint['max_seconds']:g} s.")
    if "valid" in intervals and intervals["valid"].groups is None:
        lines.append("The intervals take clips as independent; where one speaker gave several, they are too narrow.")
    if report.clips < FEW_CLIPS:
        lines.append(f"{report.clips} validation clips are few: small differences between runs mean nothing.")
    if report.undefined:
        names = ", ".join(report.undefined)
        lines.append(f"Pearson is undefined for {names}, which the mean over targets leaves out.")
    return "\n".join(f"- {line}" for line in lines)


def _raters(result: "TrainResult") -> str:
    return f"\n\n### Raters\n\n{result.agreement.markdown(result.report)}" if result.agreement else ""


def _picture(result: "TrainResult", name: str, what: str) -> str:
    return f"\n![{what}]({name}.svg)\n" if (result.folder / f"{name}.svg").is_file() else ""


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _made(fingerprint: Mapping[str, Any]) -> str:
    """Return how the features were extracted; empty for imported ones."""
    if "weights_sha256" not in fingerprint:
        return ""
    return (
        f"\n(first {fingerprint['max_seconds']:g} s, layer {fingerprint['layer']}, "
        f"weights `{fingerprint['weights_sha256'][:12]}…`)"
    )
