"""What is predicted: names, a value per clip or per frame, the labels' range, and the score that training maximises."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train_head.data.label_format import UNIT, Range
from train_head.errors import TrainSettingsError, unknown

CLIP, FRAME = "clip", "frame"
SCORES = {"pearson": "Pearson", "ccc": "CCC"}
"""Printed names of what can be maximised: its mean over the targets."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The columns that are predicted.

    Attributes:
        names: of the columns.
        resolution: "clip" (a value per clip) or "frame" (a value per label row).
        range: the ends of the labels' scale, mapped to 0 and 1 for training.
        score: "pearson" or "ccc"; its mean over the targets decides which epoch is best. The default is Pearson for
            clips, as in mimicry intensity, and CCC for frames, as in valence and arousal.

    Raises:
        TrainSettingsError: an unknown score.
    """

    names: tuple[str, ...]
    resolution: str = CLIP
    range: Range = UNIT
    score: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", self.score or ("ccc" if self.by_frame else "pearson"))
        if self.score not in SCORES:
            raise TrainSettingsError(unknown("score", self.score, SCORES))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def by_frame(self) -> bool:
        """Whether there is a value per label row."""
        return self.resolution == FRAME

    @property
    def each(self) -> str:
        """`a clip` or `every label row`, for texts."""
        return "every label row" if self.by_frame else "a clip"

    @property
    def score_name(self) -> str:
        """`Pearson` or `CCC`, for texts."""
        return SCORES[self.score]


def recorded_score(record: Mapping[str, Any]) -> str:
    """Return the score that the record of an epoch holds."""
    return next((score for score in SCORES if f"valid_mean_{score}" in record), "pearson")


def mean_score(record: Mapping[str, Any]) -> float | None:
    """Return the mean validation score over the targets of an epoch; None where it is undefined or was not taken."""
    found: float | None = record.get(f"valid_mean_{recorded_score(record)}")
    return found


def target_scores(record: Mapping[str, Any]) -> Mapping[str, float | None]:
    """Return the validation score of each target of an epoch."""
    found: Mapping[str, float | None] = record.get(f"valid_{recorded_score(record)}", {})
    return found
