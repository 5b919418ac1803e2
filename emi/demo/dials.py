"""The recipe of the demo: which property of the voice and of the face each emotion moves, and how far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Dial:
    """One property of a voice or a face: where it rests, how emotions move it, and how much chance does.

    Attributes:
        unit: what the numbers count.
        rest: value where nothing moves it.
        jitter: standard deviation of the random part, which no label explains.
        low: smallest value used.
        high: largest value used.
        moves: change per emotion at full intensity, or per unit of valence or arousal.
    """

    unit: str
    rest: float
    jitter: float
    low: float
    high: float
    moves: dict[str, float] = field(default_factory=dict)


# The first four are settings of espeak-ng, the others act on its waveform. Every emotion has a property of its own that
# the silero encoder hears in an unknown voice (found one at a time: a ridge regression on time means, 160 clips; pitch
# and pitch range alone reach a Pearson of 0.5 and 0, a tremolo 0.86, a dull timbre 0.94), and shares others. Those of
# Admiration, Amusement and Joy move little, since these are to be seen.
VOICE: dict[str, Dial] = {
    "rate": Dial(
        unit="words per minute",
        rest=195,
        jitter=8,
        low=120,
        high=360,
        moves={"Excitement": 120, "Empathic Pain": -20},
    ),
    "pitch": Dial(
        unit="espeak-ng, 0 to 99",
        rest=42,
        jitter=4,
        low=0,
        high=99,
        moves={"Excitement": 35, "Joy": 15, "Determination": -15, "Empathic Pain": -12},
    ),
    "pitch_range": Dial(
        unit="espeak-ng, 0 to 99",
        rest=45,
        jitter=4,
        low=0,
        high=99,
        moves={"Joy": 20, "Amusement": 15, "Determination": -30, "Empathic Pain": -20},
    ),
    "word_gap": Dial(unit="10 ms between words", rest=0, jitter=0.5, low=0, high=12, moves={"Empathic Pain": 8}),
    "loudness": Dial(
        unit="dB below full scale", rest=-30, jitter=0.7, low=-36, high=-16, moves={"Determination": 7, "Joy": 3}
    ),
    "swell": Dial(unit="dB from first to last sample", rest=0, jitter=0.7, low=-4, high=20, moves={"Excitement": 16}),
    "chest": Dial(unit="dB at 180 Hz", rest=0, jitter=0.7, low=-4, high=14, moves={"Determination": 10}),
    "warmth": Dial(unit="dB at 400 Hz", rest=0, jitter=0.7, low=-4, high=18, moves={"Admiration": 1.5}),
    "smile": Dial(unit="dB at 2.8 kHz", rest=0, jitter=0.7, low=-4, high=28, moves={"Joy": 4}),
    "dullness": Dial(unit="dB lost above 1.2 kHz", rest=0, jitter=0.7, low=-4, high=22, moves={"Empathic Pain": 18}),
    "breath": Dial(
        unit="noise at 4.5-7.5 kHz per voice", rest=0.02, jitter=0.01, low=0, high=0.6, moves={"Admiration": 0.03}
    ),
    "laugh": Dial(unit="depth of an 8 Hz tremolo", rest=0, jitter=0.04, low=0, high=0.95, moves={"Amusement": 0.25}),
    "room": Dial(unit="dB of background noise below full scale", rest=-66, jitter=2, low=-72, high=-60),
}

# Of `emi.demo.drawing.Pose`. Determination and Excitement cannot be seen; the jaw follows the sound.
FACE: dict[str, Dial] = {
    "smile": Dial(
        unit="-1 (corners down) to 1", rest=0, jitter=0.1, low=-1, high=1.2, moves={"Joy": 1.2, "Empathic Pain": -0.6}
    ),
    "brow": Dial(unit="-1 (lowered) to 1 (raised)", rest=0, jitter=0.1, low=-1, high=1.6, moves={"Admiration": 1.5}),
    "slant": Dial(
        unit="1: inner ends of the brows raised", rest=0, jitter=0.1, low=-1, high=1.2, moves={"Empathic Pain": 1.1}
    ),
    "blink": Dial(
        unit="-0.5 (eyes wide open) to 1 (closed)",
        rest=0,
        jitter=0.05,
        low=-0.5,
        high=0.75,
        moves={"Amusement": 0.7, "Admiration": -0.35},
    ),
}


def turn_dials(dials: Mapping[str, Dial], amounts: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Read every dial for one clip.

    Args:
        dials: such as ``VOICE`` or ``FACE``.
        amounts: what moves them, by name: a number, or an array with one per picture.
        rng: where the jitter comes from, one number per dial.

    Returns:
        By the names of the dials, a number each in the dial's unit; an array where an amount that moves it is one.
    """
    style = {}
    for name, dial in dials.items():
        moved = dial.rest + sum(move * amounts[mover] for mover, move in dial.moves.items())
        style[name] = np.clip(moved + dial.jitter * rng.standard_normal(), dial.low, dial.high)
    return style


def describe(dials: Mapping[str, Dial]) -> str:
    """Return the lines of a Markdown table: property, unit, at rest, what moves it, jitter."""
    lines = []
    for name, dial in dials.items():
        moves = ", ".join(f"{mover} {move:+g}" for mover, move in dial.moves.items()) or "—"
        lines.append(f"| {name.replace('_', ' ')} | {dial.unit} | {dial.rest:g} | {moves} | {dial.jitter:g} |")
    return "\n".join(lines)
