"""Smoothing of predictions per label row, with a width per target that is chosen on validation and kept in the run."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from cache.system.atomic_file import write_atomically
from train_head.data.labels import Labels
from train_head.errors import RunFolderError
from train_head.evaluation.labelled import report_of
from train_head.evaluation.metrics import concordance
from train_head.reports.tables import cell
from train_head.training.settings import TrainSettings
from train_head.training.smoothing_kinds import KINDS, NO_SMOOTHING

FILE = "smoothing.toml"
HALF_WIDTHS = range(0, 66, 5)
"""Label rows on either side that are tried, as systems for valence and arousal do (arXiv 2403.12425)."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How the predictions of a run are smoothed within each clip.

    Attributes:
        kind: "mean" or "median".
        half_widths: by target, label rows on either side that count; at the ends of a clip, those that are there.
        chosen: whether they were chosen on the validation clips.
        scores: by split and target, the CCC of the predictions "raw" and "smoothed"; None where it is undefined.
    """

    kind: str
    half_widths: Mapping[str, int]
    chosen: bool
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)

    def apply(self, values: NDArray[np.floating], lengths: NDArray[np.integer]) -> NDArray[np.float32]:
        """Smooth (label rows, targets) predictions of clips with these numbers of rows."""
        found = np.empty(values.shape, np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        for first, last in itertools.pairwise(offsets.tolist()):
            for k, half in enumerate(self.half_widths.values()):
                found[first:last, k] = KINDS[self.kind](values[first:last, k].astype(np.float64), half)
        return found

    def scored(self, split: str, raw: NDArray[np.floating], labels: Labels) -> "Smoothing":
        """Return the same with the scores of a split, where it has labels."""
        if not labels.names:
            return self
        reports = report_of(raw, labels), report_of(self.apply(raw, labels.lengths), labels)
        pairs = zip(labels.names, *(report.concordance for report in reports), strict=True)
        found = {name: {"raw": before, "smoothed": after} for name, before, after in pairs}
        return replace(self, scores={**self.scores, split: found})

    def write(self, folder: Path) -> None:
        """Write it into a run folder; undefined scores are left out."""
        scores = {
            split: {name: {k: v for k, v in both.items() if v is not None} for name, both in targets.items()}
            for split, targets in self.scores.items()
        }
        content = {"kind": self.kind, "chosen": self.chosen, "half_widths": dict(self.half_widths), "scores": scores}
        write_atomically(folder / FILE, tomli_w.dumps(content).encode())

    def sentence(self, split: str) -> str:
        """Say how wide it is, with the scores of a split before and after."""
        widths = ", ".join(
            f"{name} {half}" + (f" (CCC {cell(both['raw'])} raw, {cell(both['smoothed'])} smoothed)" if both else "")
            for name, half in self.half_widths.items()
            for both in [self.scores.get(split, {}).get(name)]
        )
        how = "chosen on the validation clips" if self.chosen else "as given"
        return f"smoothed within each clip by a moving {self.kind}, half-width in label rows {how}: {widths}"


def choose_smoothing(settings: TrainSettings, values: NDArray[np.floating], labels: Labels) -> Smoothing | None:
    """Choose the half-width of each target that gives the highest CCC; the smallest of equals.

    Args:
        settings: the kind of smoothing, and the half-width where it is given.
        values: (label rows, targets) raw predictions of the validation clips.
        labels: of the same rows.

    Returns:
        None where there is no smoothing.
    """
    if settings.smooth == NO_SMOOTHING:
        return None
    names = labels.names
    if settings.smooth_rows:
        return Smoothing(kind=settings.smooth, half_widths=dict.fromkeys(names, settings.smooth_rows), chosen=False)
    best: dict[str, tuple[float, int]] = {}
    for half in HALF_WIDTHS:
        tried = Smoothing(kind=settings.smooth, half_widths=dict.fromkeys(names, half), chosen=True)
        smoothed = tried.apply(values, labels.lengths)
        for k, name in enumerate(names):
            score = concordance(smoothed[:, k], labels.values[:, k])
            if name not in best or (score is not None and score > best[name][0]):
                best[name] = (-np.inf if score is None else score, half)
    return Smoothing(kind=settings.smooth, half_widths={name: half for name, (_, half) in best.items()}, chosen=True)


def read_smoothing(folder: Path) -> Smoothing | None:
    """Read the smoothing of a run; None where it has none.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        scores = {
            split: {name: {kind: both.get(kind) for kind in ("raw", "smoothed")} for name, both in targets.items()}
            for split, targets in content["scores"].items()
        }
        return Smoothing(**(content | {"scores": scores}))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove it and train again") from error
