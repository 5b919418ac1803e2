"""How a label file is to be read: which columns mean what, and on which scale its numbers are."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache.settings import setting
from train_head.errors import LabelError

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)
"""The range of labels unless another is named, and that of all labels inside."""
_SCALES: tuple[Range, ...] = ((-1, 1), (1, 5), (1, 7), (1, 9), (0, 5), (0, 10))
"""Usual ranges of ratings, the narrowest first, for the hint beside a value that is out of range."""


@dataclass(frozen=True, kw_only=True)
class LabelColumns:
    """Which columns of label files mean what.

    Targets may be given as names with commas between them; see `parse_targets`.

    Raises:
        LabelError: a target is named twice.
    """

    targets: tuple[str, ...] = setting(
        (), "Label columns to predict, in this order.", metavar="A,B", shown="every column of numbers"
    )
    rater: str | None = setting(
        None, "Label column that names the rater, where clips have a row for each of several raters."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", parse_targets(self.targets))
        twice = [name for name in self.targets if self.targets.count(name) > 1]
        if twice:
            raise LabelError(f"the target {twice[0]!r} is named twice")


@dataclass(frozen=True, kw_only=True)
class LabelFormat(LabelColumns):
    """How label files are read: their columns, their groups, and the scale of their numbers.

    Attributes:
        group_by: label column, or regular expression on Filename, that names the group of a clip.
        scale: numbers are divided by it when they are read; predictions stay between 0 and 1.
        fps: rows per second of labels per frame that have no times of their own; 0 where it is not given.
        range: smallest and largest number; mapped to 0 and 1 for training only, so that predictions and errors are on
            the labels' own scale.

    Raises:
        LabelError: a column is named for two purposes, or scale or range are not valid or both given.
    """

    group_by: str | None = None
    scale: float = 1.0
    range: Range = UNIT
    fps: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, name in (("--rater", self.rater), ("--group-by", self.group_by)):
            if name in self.targets:
                raise LabelError(f"{name!r} is named as a target and as {what}; a column can be one of them")
        if self.rater is not None and self.rater == self.group_by:
            raise LabelError(f"{self.rater!r} is named as --rater and as --group-by; a column can be one of them")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise LabelError(f"the scale of the labels must be above 0, got {self.scale:g}")
        object.__setattr__(self, "range", parse_range(self.range))
        if self.scale != 1.0 and self.range != UNIT:
            raise LabelError(BOTH)

    def to_dict(self) -> dict[str, Any]:
        """Return the columns that are not defaults: `targets`, `rater`, `group_by`."""
        known = {"targets": list(self.targets), "rater": self.rater, "group_by": self.group_by}
        return {name: value for name, value in known.items() if value}


BOTH = (
    "--label-scale and --label-range do not go together; the first divides the labels and leaves predictions between 0 "
    "and 1, the second keeps the labels' own scale: leave one out"
)


def label_format(
    *,
    targets: str | Sequence[str] | None = None,
    rater: str | None = None,
    group_by: str | None = None,
    label_scale: float | None = None,
    label_range: str | Sequence[float] | None = None,
) -> LabelFormat:
    """Return a format as a user names it: targets and range may be text, and None is the default.

    Args:
        targets: label columns to predict.
        rater: label column that names the rater.
        group_by: label column, or regular expression on Filename, that names the group.
        label_scale: the numbers are divided by it.
        label_range: ends of the labels' scale.
    """
    return LabelFormat(
        targets=parse_targets(targets),
        rater=rater,
        group_by=group_by,
        scale=1.0 if label_scale is None else label_scale,
        range=UNIT if label_range is None else parse_range(label_range),
    )


def recorded_format(config: Mapping[str, Any]) -> LabelFormat:
    """Return how a run read its labels, from its config.toml."""
    data = config.get("data", {})
    return label_format(
        **{key: data.get(key) for key in ("targets", "rater", "group_by")},
        **{key: config.get(key) for key in ("label_scale", "label_range")},
    )


def parse_targets(targets: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return names of columns, given as a sequence or as text with commas between them; quotes keep a comma in a name.

    Raises:
        LabelError: a name is empty.
    """
    if targets is None:
        return ()
    named = next(csv.reader([targets], skipinitialspace=True), []) if isinstance(targets, str) else targets
    names = tuple(name.strip() for name in named)
    if not all(names) or (isinstance(targets, str) and not names):
        raise LabelError(f"--targets {targets!r}: expected names of columns with commas between them")
    return names


def parse_range(value: str | Sequence[float]) -> Range:
    """Return the two ends of a scale, given as `-1,1` or as two numbers.

    Raises:
        LabelError: not two finite numbers, the smaller first.
    """
    try:
        low, high = map(float, value.split(",") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise LabelError(f"the range of the labels must be MIN,MAX, such as -1,1, got {value!r}")
    return low, high


def range_text(span: Range) -> str:
    """Return a range as `[0, 1]`, for texts."""
    return f"[{span[0]:g}, {span[1]:g}]"


def range_hint(low: float, high: float) -> str:
    """Return the option for a column from `low` to `high`, such as `--label-range -1,1 for labels from -1 to 1`."""
    if low >= 0 and 10 < high <= 100:
        return "--label-scale 100 for labels from 0 to 100"
    for first, last in (*_SCALES, (-100, 100)):
        if first <= low and high <= last:
            return f"--label-range {first:g},{last:g} for labels from {first:g} to {last:g}"
    return "--label-range MIN,MAX with the ends of the labels' scale"
