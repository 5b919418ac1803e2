"""Decide everything about the demo clips before the first is spoken: split, voice, sentence, intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emi.demo.labels import draw_intensities
from emi.demo.voices import split_voices

VALID_SHARE = 0.25

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


def plan_clips(clips: int, seed: int) -> list[Clip]:
    """Plan a whole demo; the same arguments give the same plan.

    Args:
        clips: how many, at least 4, so that each split has 2.
        seed: of everything drawn.

    Returns:
        Clips in the order of their numbers, the splits interleaved as in the real data.
    """
    rng = np.random.default_rng([seed, 0])
    train_voices, valid_voices = split_voices(rng)
    valid = max(2, round(VALID_SHARE * clips))
    rows: list[tuple[str, str, NDArray[np.float64]]] = []
    for split, count, voices in (("train", clips - valid, train_voices), ("valid", valid, valid_voices)):
        intensities = draw_intensities(count, rng)
        rows += [(split, voices[i % len(voices)], intensities[i]) for i in range(count)]
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
