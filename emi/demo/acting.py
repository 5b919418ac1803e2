"""Move a drawn face: an expression with the sound's envelope at the mouth, small movements of the head, blinks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emi.demo.drawing import Point, Pose

Track = NDArray[np.float64]
"""(frames,) one value per picture."""

RISE_SECONDS = 0.4
"""From neutral to the whole expression, at the start of a clip."""
BLINKS_PER_SECOND, BLINK_SECONDS = 0.25, 0.15
SWAY_SECONDS = 3.0
"""How long the head takes to and fro, about."""


def follow_sound(waveform: NDArray[np.float32], rate: int, times: Track, fps: float) -> Track:
    """Return how wide the mouth is open at some times.

    Args:
        waveform: float32 of shape (samples,).
        rate: its sample rate in Hz.
        times: of the pictures in seconds.
        fps: pictures per second.

    Returns:
        (frames,) 0 to 1: the sound's level while a picture is shown, as a share of the largest.
    """
    power = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    start, end = (np.clip(np.rint((times + shift) * rate), 0, len(waveform)).astype(int) for shift in (0, 1 / fps))
    level = np.sqrt((power[end] - power[start]) / np.maximum(end - start, 1))
    return level / (level.max() + 1e-9)


def rise(times: Track) -> Track:
    """Return the share of the expression that is shown at some times, 0.2 to 1."""
    return np.clip(0.2 + times / RISE_SECONDS, 0, 1)


def act(
    expression: Mapping[str, Track],
    times: Track,
    rng: np.random.Generator,
    *,
    centre: Point = (0.5, 0.47),
    size: float = 0.7,
    sway: Track | float = 1.0,
) -> list[Pose]:
    """Make the poses of a face that shows an expression, as a person who looks into a camera does.

    Args:
        expression: values of `Pose` by name, one per picture; blinks are added.
        times: of the pictures in seconds.
        rng: where movements and blinks come from.
        centre: of the head at rest, in fractions of the picture.
        size: height of the head, likewise.
        sway: how much the head moves.
    """
    moved = {name: _wander(times, rng) * sway for name in ("yaw", "roll", "x", "y", "nearer")}
    tracks: dict[str, Any] = dict(expression)
    tracks["blink"] = np.maximum(tracks.get("blink", np.zeros(len(times))), _blinks(times, rng))
    tracks |= {"yaw": 0.12 * moved["yaw"], "roll": 3.0 * moved["roll"], "size": size * (1 + 0.03 * moved["nearer"])}
    centres = zip((centre[0] + 0.02 * moved["x"]).tolist(), (centre[1] + 0.015 * moved["y"]).tolist(), strict=True)
    columns = zip(*(track.tolist() for track in tracks.values()), strict=True)
    return [
        Pose(centre=at, **dict(zip(tracks, values, strict=True))) for at, values in zip(centres, columns, strict=True)
    ]


def _wander(times: Track, rng: np.random.Generator) -> Track:
    """(frames,) a slow random movement between -1 and 1."""
    periods, phases = SWAY_SECONDS * rng.uniform(0.6, 1.6, 2), rng.uniform(0, 2 * np.pi, 2)
    return np.mean([np.sin(2 * np.pi * times / p + phase) for p, phase in zip(periods, phases, strict=True)], axis=0)


def _blinks(times: Track, rng: np.random.Generator) -> Track:
    """(frames,) 1 while the eyes are shut, else -1."""
    seconds = float(times[-1]) if len(times) else 0.0
    starts = rng.uniform(0, seconds, rng.poisson(BLINKS_PER_SECOND * seconds))
    shut = ((times[:, None] >= starts) & (times[:, None] < starts + BLINK_SECONDS)).any(axis=1)
    return np.where(shut, 1.0, -1.0)
