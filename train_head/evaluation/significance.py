"""Test whether a difference between two predictions of the same clips could be chance.

With many clips and no groups, p is twice the smaller share of bootstrap resamples on one side of 0. Each share is
(1 + count) / (1 + resamples) (Davison and Hinkley 1997, section 4.2), so that p is never 0.

With groups, or with few clips, bootstrap p-values are far too small. There p is from a randomisation test (Fisher 1935,
The Design of Experiments; Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses). Under its null
hypothesis the two predictions of a unit, a group or a clip, can be exchanged. p is the share of exchanges, the identity
included, after which the metric over all clips differs by at least as much as observed. Up to `EXACT_UNITS` units all
2^units exchanges are tried, so p is exact and at least 2 / 2^units. With more units, random ones are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train_head.evaluation.resampling import EXACT_UNITS, Values

BOOTSTRAP, EXACT, RANDOM = "bootstrap", "exact sign-flip", "random sign-flip"
TIE = 1e-9
"""Differences this close, relative to the largest, count as equal: the sums are rounded."""


@dataclass(frozen=True, kw_only=True)
class SignificanceTest:
    """How a difference was tested.

    Attributes:
        name: "bootstrap", "exact sign-flip" or "random sign-flip".
        units: number of clips or groups.
        grouped: whether units are groups.
        number: number of resamples, or of exchanges of the two predictions.
    """

    name: str
    units: int
    grouped: bool
    number: int

    @property
    def least(self) -> float:
        """The lowest p that the test can give."""
        return 2 / self.number if self.name == EXACT else (2 if self.name == BOOTSTRAP else 1) / (1 + self.number)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {"name": self.name, "units": self.units, "number": self.number, "least_p": self.least}

    def sentence(self) -> str:
        """Describe the test in a sentence."""
        if self.name == BOOTSTRAP:
            return "p: two-sided, from the same resamples as the interval"
        over = f"{self.units} {'groups' if self.grouped else 'clips'}"
        number = f"all {self.number}" if self.name == EXACT else f"{self.number} random"
        return (
            f"p: two-sided, {self.name} test over {over} with {number} exchanges of A and B within them; it cannot go "
            f"below {self.least:.3g}"
        )


def choose_test(clips: int, counts: Sequence[int], groups: int | None, resamples: int) -> SignificanceTest:
    """Choose the test for a number of clips or groups; see the top of this file.

    Args:
        clips: number of clips.
        counts: labelled clips per target.
        groups: number of groups; None if clips are units.
        resamples: number of resamples or exchanges to draw.
    """
    units = clips if groups is None else groups
    if units <= EXACT_UNITS:
        name, resamples = EXACT, 2**units
    else:
        name = BOOTSTRAP if groups is None and min(counts) > EXACT_UNITS else RANDOM
    return SignificanceTest(name=name, units=units, grouped=groups is not None, number=resamples)


def bootstrap_p(drawn: Values) -> float | None:
    """Return the two-sided p of resampled differences, NaN ones left out; None if all are NaN."""
    defined = drawn[~np.isnan(drawn)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + side) / (1 + len(defined))) if len(defined) else None


def exchange_p(differences: Values) -> float:
    """Return the share of exchanges with at least the difference of the first, which is the identity.

    An exchange after which the metric is undefined counts as one, so that p is not too low.
    """
    sizes = np.abs(differences)
    return float((~(sizes < sizes[0] - TIE * sizes.max(where=~np.isnan(sizes), initial=0.0))).mean())
