"""Decide everything about the videos before the first is made: names, rates, people, their valence and arousal."""

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from emi.demo.acting import Track
from emi.demo.plan import split_voices, valid_share
from emi.demo.settings import MAX_CLIPS

SETS = {"train": "Train_Set", "valid": "Validation_Set"}
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(15, 2))
SECONDS = (5.0, 8.0)
SIZES = {1: (144, 192), 2: (144, 256)}
"""Height and width of the pictures, by number of people."""
NAMES = ("{number}", "video{number}", "{number}-{rate}-{width}x{height}")
ROWS_TOO_MANY = (0, 1, 0, -1, 2, 0, -2)
"""Lines of an annotation minus frames of its video, in turn: the two were made by different decoders."""
PERIODS = (2.5, 8.0)
"""Seconds of the waves that valence and arousal are made of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One person of a video, with labels.

    Attributes:
        name: of the annotation and of the folder of crops.
        voice: name for espeak-ng.
        face: number of a drawn identity.
        valence: (frames,) within [-1, 1].
        arousal: likewise.
        present: (frames,) whether the person is in the picture.
        annotated: (rows,) whether a line of the annotation has values; there may be a few lines more or fewer than
            frames.
    """

    name: str
    voice: str
    face: int
    valence: Track
    arousal: Track
    present: NDArray[np.bool_]
    annotated: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """One video with one or two people.

    Attributes:
        name: of the file, without suffix.
        split: train or valid.
        fps: pictures per second.
        size: height and width of the pictures.
        times: (frames,) seconds at which the pictures are shown.
        trials: of its people, from left to right.
    """

    name: str
    split: str
    fps: Fraction
    size: tuple[int, int]
    times: Track
    trials: tuple[Trial, ...]


def plan_videos(count: int, seed: int) -> list[Video]:
    """Plan all videos; the same arguments give the same plan.

    Args:
        count: number of videos, at least 4.
        seed: of everything drawn.
    """
    rng = np.random.default_rng([seed, 3])
    voices = {split: itertools.cycle(names) for split, names in split_voices(rng).items()}
    numbers, rows_too_many = iter((1 + rng.permutation(count)).tolist()), itertools.cycle(ROWS_TOO_MANY)
    faces, valid = itertools.count(seed * MAX_CLIPS), valid_share(count)
    videos = []
    for split, videos_of_split in (("train", count - valid), ("valid", valid)):
        for place in range(videos_of_split):
            people = 2 if place % 4 == 1 else 1
            fps, size = RATES[place % len(RATES)], SIZES[people]
            form = NAMES[place // len(RATES) % len(NAMES)]
            name = form.format(number=next(numbers), rate=math.floor(fps), height=size[0], width=size[1])
            times = np.arange(round(rng.uniform(*SECONDS) * fps)) / float(fps)
            trials = tuple(
                _plan_trial(name + side, next(voices[split]), next(faces), times, next(rows_too_many), rng)
                for side in (("_left", "_right") if people == 2 else ("",))
            )
            videos.append(Video(name=name, split=split, fps=fps, size=size, times=times, trials=trials))
    return videos


def _plan_trial(name: str, voice: str, face: int, times: Track, rows_too_many: int, rng: np.random.Generator) -> Trial:
    frames = len(times)
    return Trial(
        name=name,
        voice=voice,
        face=face,
        valence=_draw_trace(times, rng),
        arousal=_draw_trace(times, rng),
        present=~_draw_stretch(frames, rng.uniform(0.04, 0.12), rng),
        annotated=~_draw_stretch(frames + rows_too_many, rng.uniform(0.05, 0.15), rng),
    )


def _draw_trace(times: Track, rng: np.random.Generator) -> Track:
    """(frames,) three slow waves around a resting point, within [-1, 1]."""
    waves = (np.sin(2 * np.pi * (times / rng.uniform(*PERIODS) + rng.random())) for _ in range(3))
    return np.tanh(rng.uniform(-0.3, 0.3) + 0.5 * sum(waves))


def _draw_stretch(rows: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(rows,) true in one stretch anywhere, which may be the start or the end."""
    length = max(1, round(share * rows))
    start = int(np.clip(rng.uniform(-0.2, 1.2) * (rows - length), 0, rows - length))
    return (np.arange(rows) >= start) & (np.arange(rows) < start + length)
