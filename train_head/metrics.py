"""Agreement of predictions with labels, in float64 over the whole split.

A column that is constant has no correlation: it is reported as undefined and left out of the mean, which says over how
many targets it was taken. It is never counted as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Column = NDArray[np.float64]


def pearson(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Pearson correlation of two (clips,) columns, or None where either is constant."""
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # tiny spreads would underflow when squared
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def concordance(predicted: ArrayLike, target: ArrayLike) -> float | None:
    """Lin's concordance correlation coefficient (population moments), or None where both columns are constant."""
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    if len(a) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return None
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / spread)


@dataclass(frozen=True)
class Report:
    """Metrics of one split.

    Attributes:
        names: the targets.
        clips: how many clips were compared.
        pearson: correlation per target, None where undefined.
        concordance: CCC per target, None where undefined.
        mae: mean absolute error per target.
    """

    names: tuple[str, ...]
    clips: int
    pearson: tuple[float | None, ...]
    concordance: tuple[float | None, ...]
    mae: tuple[float, ...]

    @property
    def mean_pearson(self) -> float | None:
        """Mean over the targets whose correlation is defined; None where none is."""
        return _mean(self.pearson)

    @property
    def undefined(self) -> tuple[str, ...]:
        """Targets without a correlation, because their labels or predictions are constant."""
        return tuple(name for name, value in zip(self.names, self.pearson, strict=True) if value is None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with None for what is undefined."""
        return {
            "clips": self.clips,
            "mean_pearson": self.mean_pearson,
            "pearson": dict(zip(self.names, self.pearson, strict=True)),
            "concordance": dict(zip(self.names, self.concordance, strict=True)),
            "mae": dict(zip(self.names, self.mae, strict=True)),
            "undefined": list(self.undefined),
        }

    def table(self) -> str:
        """Plain-text table, one line per target and the mean."""
        width = max(14, *map(len, self.names))
        lines = [f"{'':<{width}}  Pearson     CCC     MAE"]
        rows = zip(self.names, self.pearson, self.concordance, self.mae, strict=True)
        lines += [f"{n:<{width}}  {_cell(r)}  {_cell(c)}  {m:6.3f}" for n, r, c, m in rows]
        lines.append(
            f"{'mean':<{width}}  {_cell(self.mean_pearson)}  {_cell(_mean(self.concordance))}  {np.mean(self.mae):6.3f}"
        )
        if self.undefined:
            defined = len(self.names) - len(self.undefined)
            lines.append(
                f"Pearson is undefined for {', '.join(self.undefined)} (constant labels or predictions); the mean is "
                f"over the other {defined} of {len(self.names)}."
            )
        return "\n".join(lines)


def evaluate(predicted: ArrayLike, target: ArrayLike, names: Sequence[str]) -> Report:
    """Compare (clips, targets) predictions with labels.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != len(names):
        raise ValueError(f"predictions have shape {a.shape}, labels {b.shape}, expected both (clips, {len(names)})")
    columns = range(a.shape[1])
    return Report(
        names=tuple(names),
        clips=len(a),
        pearson=tuple(pearson(a[:, k], b[:, k]) for k in columns),
        concordance=tuple(concordance(a[:, k], b[:, k]) for k in columns),
        mae=tuple(float(np.abs(a[:, k] - b[:, k]).mean()) for k in columns),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _cell(value: float | None) -> str:
    return "  undef" if value is None else f"{value:7.3f}"
