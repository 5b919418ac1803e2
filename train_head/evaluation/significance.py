"""Could a difference between two predictions of the same clips be chance?

With many clips and no groups, p is twice the smaller share of bootstrap resamples on one side of 0, each share (1 +
count) / (1 + resamples) (Davison and Hinkley 1997, section 4.2) so that it is never 0.

With groups, which are seldom many, or with few clips, the bootstrap gives p far too small. There p is of a
randomisation test (Fisher 1935, The Design of Experiments; Good 2005, Permutation, Parametric and Bootstrap Tests of
Hypotheses): if neither run is better, their predictions of a whole unit, a group or a clip, can be exchanged. p is the
share of exchanges, that of none among them, after which the metric over all clips differs at least as much as it does.
Up to `EXACT_UNITS` units all 2^units exchanges are tried: p is exact, and at least 2 / 2^units. With more, some are
drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train_head.evaluation.resampling import EXACT_UNITS, Values

BOOTSTRAP, EXACT, RANDOM = "bootstrap", "exact sign-flip", "random sign-flip"
TIE = 1e-9
"""Differences this close, as a share of the largest, are equal: the sums are rounded."""


@dataclass(frozen=True, kw_only=True)
class SignificanceTest:
    """How a difference was tested.

    Attributes:
        name: "bootstrap", "exact sign-flip" or "random sign-flip".
        units: how many clips or groups.
        grouped: whether they are groups.
        number: resamples, or exchanges of the two predictions; all there are in the exact test.
    """

    name: str
    units: int
    grouped: bool
    number: int

    @property
    def least(self) -> float:
        """The lowest p that it can give."""
        return 2 / self.number if self.name == EXACT else (2 if self.name == BOOTSTRAP else 1) / (1 + self.number)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"name": self.name, "units": self.units, "number": self.number, "least_p": self.least}

    def sentence(self) -> str:
        """In words."""
        over = f"{self.units} {'groups' if self.grouped else 'clips'}"
        if self.name == BOOTSTRAP:
            return "p: two-sided, from the same resamples as the interval"
        how = "all" if self.name == EXACT else "a draw of"
        return (
            f"p: two-sided, {self.name} test over {over}, {how} {self.number} exchanges of A and B within them; it "
            f"cannot go below {self.least:.3g}"
        )


def choose_test(clips: int, counts: Sequence[int], groups: int | None, resamples: int) -> SignificanceTest:
    """The test for a number of clips or groups; see the top of this file.

    Args:
        clips: how many.
        counts: how many of them have a label, per target.
        groups: how many; None where clips are units of their own.
        resamples: how many resamples or exchanges to draw.
    """
    units = clips if groups is None else groups
    if units <= EXACT_UNITS:
        return SignificanceTest(name=EXACT, units=units, grouped=groups is not None, number=2**units)
    name = BOOTSTRAP if groups is None and min(counts) > EXACT_UNITS else RANDOM
    return SignificanceTest(name=name, units=units, grouped=groups is not None, number=resamples)


def bootstrap_p(drawn: Values) -> float | None:
    """Two-sided p of resampled differences, without those that are NaN; None where all are."""
    defined = drawn[~np.isnan(drawn)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + side) / (1 + len(defined))) if len(defined) else None


def exchange_p(differences: Values) -> float:
    """Share of exchanges with at least the difference of the first, which exchanges nothing.

    One after which the metric is undefined counts as such, so that p is not too low.
    """
    sizes = np.abs(differences)
    return float((~(sizes < sizes[0] - TIE * sizes.max(where=~np.isnan(sizes), initial=0.0))).mean())
