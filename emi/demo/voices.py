"""The made-up speakers of the demo and which of them are kept for validation."""

from __future__ import annotations

import numpy as np

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


def split_voices(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Choose the voices of the two splits, low and high ones in both.

    Returns:
        Names for training (21) and for validation (7); no name is in both.
    """
    low, high = rng.permutation(LOW_VOICES).tolist(), rng.permutation(HIGH_VOICES).tolist()
    train, valid = low[VALID_LOW:] + high[VALID_HIGH:], low[:VALID_LOW] + high[:VALID_HIGH]
    return rng.permutation(train).tolist(), rng.permutation(valid).tolist()
