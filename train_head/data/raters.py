"""Several raters per clip: their mean as the label, how reliable it is, and how well one rater agrees with the others.

A model that predicts the mean of the raters is compared with the reliability of that mean, and with a single rater
judged in the same way (against the mean of the others): the ceiling that agreement between people sets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.exchange.tables import Table
from train_head.data.label_columns import Columns, is_number
from train_head.evaluation.metrics import Bounds, Column, Report, concordance, mean_of, pearson
from train_head.reports.tables import cell, markdown_table, text_table

_RATERS_NAME = re.compile(r"rater|annotator|judge|coder|worker|labell?er|observer|participant", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Ratings:
    """The labels of single raters, one row each.

    Attributes:
        raters: their names.
        rater: (ratings,) int64, which of them.
        clip: (ratings,) int64, the row of the clip in its split.
        values: (ratings, targets) float64, NaN where a label is missing.
    """

    raters: tuple[str, ...]
    rater: NDArray[np.int64]
    clip: NDArray[np.int64]
    values: NDArray[np.float64]

    def mean(self, clips: int) -> Column:
        """Return the (clips, targets) float64 mean over a clip's raters, NaN where none gave a label."""
        present = ~np.isnan(self.values)
        total, count = (np.zeros((clips, self.values.shape[1])) for _ in range(2))
        np.add.at(total, self.clip, np.where(present, self.values, 0.0))
        np.add.at(count, self.clip, present)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def take(self, rows: Sequence[int]) -> "Ratings":
        """Return the ratings of some clips, which get new numbers."""
        place = np.full(max((int(self.clip.max(initial=0)), *rows)) + 1, -1)
        place[list(rows)] = np.arange(len(rows))
        kept = place[self.clip] >= 0
        return Ratings(self.raters, self.rater[kept], place[self.clip[kept]], self.values[kept])

    def joined(self, other: "Ratings", clips: int) -> "Ratings":
        """Return these ratings and those of a split that is put behind this one.

        Args:
            other: ratings of the other split.
            clips: number of clips of this split.
        """
        raters = tuple(dict.fromkeys((*self.raters, *other.raters)))
        number = np.array([raters.index(name) for name in other.raters], dtype=np.int64)
        return Ratings(
            raters,
            np.concatenate([self.rater, number[other.rater]]),
            np.concatenate([self.clip, other.clip + clips]),
            np.concatenate([self.values, other.values]),
        )


@dataclass(frozen=True)
class Agreement:
    """How well raters agree; None where it is undefined.

    Attributes:
        names: the targets.
        raters: number of people who rated.
        clips: clips with a label of at least one of them.
        per_clip: mean number of ratings of such a clip.
        reliability: per target, that of the mean of a clip's raters: ICC(1,k).
        pearson: per target, one rater against the mean of the others of each clip, mean over the raters.
        concordance: the same by CCC.
    """

    names: tuple[str, ...]
    raters: int
    clips: int
    per_clip: float
    reliability: Bounds
    pearson: Bounds
    concordance: Bounds

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with None for what is undefined."""
        return {
            "raters": self.raters,
            "clips": self.clips,
            "per_clip": self.per_clip,
            "reliability": dict(zip(self.names, self.reliability, strict=True)),
            "ceiling_pearson": dict(zip(self.names, self.pearson, strict=True)),
            "ceiling_concordance": dict(zip(self.names, self.concordance, strict=True)),
        }

    def table(self, report: Report) -> str:
        """Return a plain-text table: the raters, and beside them a model of the same targets."""
        return "\n".join([self._who(), text_table(["", *_HEADER], self._rows(report)), NOTE])

    def markdown(self, report: Report) -> str:
        """Return the same as a Markdown table."""
        return "\n".join([f"{self._who()}.", "", markdown_table(["target", *_HEADER], self._rows(report)), "", NOTE])

    def _who(self) -> str:
        return f"{self.raters} raters, {self.per_clip:.1f} per clip, {self.clips} clips"

    def _rows(self, report: Report) -> list[list[str]]:
        model = dict(zip(report.names, zip(report.pearson, report.concordance, strict=True), strict=True))
        people = zip(self.names, self.reliability, self.pearson, self.concordance, strict=True)
        return [[name, *map(cell, (*values, *model[name]))] for name, *values in people]


_HEADER = ("reliability, ICC(1,k)", "one rater: Pearson", "CCC", "model: Pearson", "CCC")
NOTE = (
    "One rater: each against the mean of a clip's other raters, mean over the raters. The model is compared with the "
    "mean of all, which is less noisy, and may do better than one rater."
)


def agreement(ratings: Ratings, names: Sequence[str]) -> Agreement:
    """Compute how reliable the mean of the raters is, and how well one agrees with the others, per target.

    Args:
        ratings: of the clips of a split.
        names: (targets,).
    """
    present = ~np.isnan(ratings.values).all(axis=1)
    clips = len(set(ratings.clip[present].tolist()))
    found = [_of_target(ratings, k) for k in range(len(names))]
    return Agreement(
        names=tuple(names),
        raters=len(set(ratings.rater[present].tolist())),
        clips=clips,
        per_clip=int(present.sum()) / max(1, clips),
        reliability=tuple(reliability for reliability, _, _ in found),
        pearson=tuple(r for _, r, _ in found),
        concordance=tuple(c for _, _, c in found),
    )


def icc1k(values: Column, clip: NDArray[np.int64]) -> float | None:
    """Reliability of the mean of a clip's ratings by a one-way random effects model: ICC(1,k).

    `(MSB - MSW) / MSB` of Shrout and Fleiss, Psychological Bulletin 1979, which does not ask who rated what. Where
    clips have unequal numbers of ratings the variances are estimated with Donner's n0 (International Statistical
    Review 1986), and k is the harmonic mean of the numbers.

    Args:
        values: (ratings,) of one target, none missing.
        clip: (ratings,) which clip each is of.

    Returns:
        At most 1, below 0 where raters of one clip differ more than clips do; None for fewer than two clips, without
        a clip that was rated twice, or where all ratings are alike.
    """
    _, rows, counts = np.unique(clip, return_inverse=True, return_counts=True)
    clips, total = len(counts), len(values)
    if clips < 2 or total == clips or np.ptp(values) == 0:
        return None
    means = np.bincount(rows, values) / counts
    between = float(counts @ (means - values.mean()) ** 2) / (clips - 1)
    within = float(np.square(values - means[rows]).sum()) / (total - clips)
    n0 = (total - float(counts @ counts) / total) / (clips - 1)
    spread = (between - within) / n0  # variance of what the clips themselves differ by
    k = clips / float((1.0 / counts).sum())
    common = spread + within / k
    return spread / common if common > 0 else None


def _of_target(ratings: Ratings, target: int) -> tuple[float | None, float | None, float | None]:
    """Return the reliability, and Pearson and CCC of one rater against the others."""
    kept = ~np.isnan(ratings.values[:, target])
    values, clip, rater = ratings.values[kept, target], ratings.clip[kept], ratings.rater[kept]
    if not len(values):
        return None, None, None
    total, count = np.bincount(clip, values), np.bincount(clip)
    shared = count[clip] > 1
    values_shared, clip_shared, rater_shared = values[shared], clip[shared], rater[shared]
    others = (total[clip_shared] - values_shared) / (count[clip_shared] - 1)
    order = np.argsort(rater_shared, kind="stable")
    by_rater = np.split(order, np.flatnonzero(np.diff(rater_shared[order])) + 1)
    correlations = [pearson(values_shared[rows], others[rows]) for rows in by_rater]  # None for fewer than three clips
    concordances = [concordance(values_shared[rows], others[rows]) for rows in by_rater]
    return icc1k(values, clip), mean_of(correlations), mean_of(concordances)


def looks_like_raters(table: Table, columns: Columns, rows: Sequence[int]) -> str | None:
    """Return a column that tells the rows of every clip apart, and whose values come again with other clips."""
    found: list[tuple[int, int]] = []
    for k, name in enumerate(table.header):
        cells = [row[k] for row in table.rows]
        pairs = set(zip(rows, cells, strict=True))
        if k == columns.filename or not name or len(pairs) < len(cells) or len(set(cells)) == len(cells):
            continue
        whole = all(cell.isdecimal() for cell in cells) and 2 * len(set(cells)) <= len(cells)
        likely = bool(_RATERS_NAME.search(name)), not any(map(is_number, cells)), whole
        if any(likely):
            found.append((likely.index(True), k))
    return table.header[min(found)[1]] if found else None
