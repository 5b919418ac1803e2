"""Decide everything about the demo clips before the first is spoken: split, voice, sentence, intensities."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emi.demo.labels import EMOTIONS, draw_intensities

VALID_SHARE = 0.25

# A speaker is an accent of English plus a voice variant of espeak-ng. Every variant is used once, so no vocal tract
# is heard in both splits. Chosen by measurement among the 100 variants: no clipping, no whisper,
# no robots; median pitch 95-120 Hz for the low ones and 170-255 Hz for the high ones.
LOW_VOICES = (
    "en-us+m1",
    "en+m2",
    "en-gb-scotland+m3",
    "en-029+m4",
    "en-gb-x-rp+m5",
    "en-us+m6",
    "en-gb-x-gbcwmd+m7",
    "en-us-nyc+Alex",
    "en-gb-x-gbclan+boris",
    "en-us+max",
    "en+robert",
    "en-gb-scotland+grandpa",
    "en-029+Mike",
    "en-gb-x-rp+kaukovalta",
    "en-us-nyc+klatt4",
    "en-us+victor",
)
HIGH_VOICES = (
    "en-us+f1",
    "en+f2",
    "en-gb-scotland+f3",
    "en-029+f4",
    "en-gb-x-rp+f5",
    "en-us+Alicia",
    "en-gb-x-gbcwmd+Annie",
    "en-us-nyc+aunty",
    "en-gb-x-gbclan+belinda",
    "en-us+grandma",
    "en+linda",
    "en-gb-scotland+shelby",
)
VALID_LOW, VALID_HIGH = 4, 3

# Short, and none says what is felt: the words must not give the label away. The commas make room for pauses.
SENTENCES = (
    "So, this is how it is.",
    "Look, it is over there now.",
    "You came back here, again.",
    "The door is open today, too.",
    "That was only yesterday.",
    "I saw it there, with her.",
    "We are all here, at last.",
    "It is about time for it, now.",
    "Well, what are we doing now?",
    "They told me so, before.",
    "There it goes, down the road.",
    "I know this place, I think.",
    "He said it, two times.",
    "Now, it is our turn to go.",
    "This one is mine, not yours.",
    "And then, we went by bus.",
    "Is it yours, or is it hers?",
    "It was here, on the table.",
    "She read it, to the last line.",
    "Ten of them, all in a row.",
)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip to be made.

    Attributes:
        number: names the files, ``00007`` for 7.
        split: ``train`` or ``valid``.
        voice: name for espeak-ng.
        text: the sentence.
        intensities: float64 of shape (6,), in the order of ``EMOTIONS``.
    """

    number: int
    split: str
    voice: str
    text: str
    intensities: NDArray[np.float64]

    @property
    def amounts(self) -> dict[str, float]:
        """The intensities by emotion."""
        return dict(zip(EMOTIONS, self.intensities.tolist(), strict=True))


def split_voices(rng: np.random.Generator) -> dict[str, list[str]]:
    """Return voices for "train" and others for "valid", low and high ones in both, each in random order."""
    low, high = rng.permutation(LOW_VOICES).tolist(), rng.permutation(HIGH_VOICES).tolist()
    voices = {"train": low[VALID_LOW:] + high[VALID_HIGH:], "valid": low[:VALID_LOW] + high[:VALID_HIGH]}
    return {split: rng.permutation(names).tolist() for split, names in voices.items()}


def valid_share(clips: int) -> int:
    """Return how many of the clips are for validation, at least 2."""
    return max(2, round(VALID_SHARE * clips))


def plan_clips(clips: int, seed: int) -> list[Clip]:
    """Plan a whole demo; the same arguments give the same plan.

    Args:
        clips: how many, at least 4, so that each split has 2.
        seed: of everything drawn.

    Returns:
        Clips in the order of their numbers, the splits interleaved as in the real data.
    """
    rng = np.random.default_rng([seed, 0])
    voices = split_voices(rng)
    valid = valid_share(clips)
    rows: list[tuple[str, str, NDArray[np.float64]]] = []
    for split, count in (("train", clips - valid), ("valid", valid)):
        cycle = itertools.cycle(voices[split])
        rows += [(split, next(cycle), drawn) for drawn in draw_intensities(count, rng)]
    return [
        Clip(
            number=number,
            split=rows[row][0],
            voice=rows[row][1],
            text=SENTENCES[rng.integers(len(SENTENCES))],
            intensities=rows[row][2],
        )
        for number, row in enumerate(rng.permutation(clips).tolist())
    ]
