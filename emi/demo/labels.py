"""Draw six made-up emotion intensities per clip that are spread like those of Hume-Vidmimic2."""

import numpy as np
from numpy.typing import NDArray

EMOTIONS = ("Admiration", "Amusement", "Determination", "Empathic Pain", "Excitement", "Joy")

# Part of the clips in which an emotion is not zero. In the real splits 55-90 % of each column is at or near zero.
ACTIVE_SHARE = (0.34, 0.40, 0.36, 0.30, 0.42, 0.38)

# Real intensities are means over a few raters, hence thirds, halves and sixths, written with six digits.
LEVELS = (0.166667, 0.333333, 0.5, 0.666667, 0.833333, 1.0)
LEVEL_SHARE = (0.08, 0.24, 0.24, 0.20, 0.12, 0.12)

# Small splits correlate by chance. The least correlated of this many draws stays about where the real columns are
# (-0.14 to +0.23): its largest correlation is 0.20 in the mean for 32 clips and 0.12 for 96.
DRAWS = 64


def draw_intensities(clips: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw intensities whose counts are fixed, so that every split, however small, can be scored by Pearson.

    Each column gets its exact share of non-zero clips and an even spread of levels; chance only decides which
    clip gets which value. Of several draws the least correlated one is kept.

    Args:
        clips: number of clips of one split, at least 2.
        rng: the generator to draw from; the same state gives the same values.

    Returns:
        Intensities, float64 of shape (clips, 6), in [0, 1], columns in the order of ``EMOTIONS``. No column is
        constant.
    """
    draws = (np.stack([_draw_column(clips, share, rng) for share in ACTIVE_SHARE], axis=1) for _ in range(DRAWS))
    return min(draws, key=_largest_correlation)  # (clips, 6)


def _largest_correlation(drawn: NDArray[np.float64]) -> float:
    return float(np.abs(np.corrcoef(drawn, rowvar=False) - np.eye(len(EMOTIONS))).max())


def _draw_column(clips: int, share: float, rng: np.random.Generator) -> NDArray[np.float64]:
    active = min(max(round(share * clips), 1), clips - 1)
    quantiles = (np.arange(active) + rng.random()) / active
    levels = np.asarray(LEVELS)[np.searchsorted(np.cumsum(LEVEL_SHARE)[:-1], quantiles, side="right")]
    column = np.zeros(clips)
    column[:active] = levels
    return rng.permutation(column)
