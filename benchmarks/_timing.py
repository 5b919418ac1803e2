"""How work is timed on a machine that others use too, and how figures are shown."""

import time
from collections.abc import Callable

PAIR_SECONDS, MOST_PAIRS = 10.0, 30
"""More pairs are taken than asked for while they take less time than this in all."""


def in_pairs(one: Callable[[], object], other: Callable[[], object], least: int) -> list[tuple[float, float]]:
    """Seconds of two pieces of work, one right after the other, again and again."""
    one()
    pairs: list[tuple[float, float]] = []
    until = time.perf_counter() + PAIR_SECONDS
    while len(pairs) < least or (least > 1 and time.perf_counter() < until and len(pairs) < MOST_PAIRS):
        pairs.append((seconds_of(one), seconds_of(other)))
    return pairs


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def figure(value: float) -> str:
    """Three digits; counts as they are."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
