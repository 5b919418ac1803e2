"""The one rule by which file names in a CSV become clip ids."""

import re

DIGITS = 5


def clip_id(name: str) -> str:
    """Pad an integer to five digits, as Hume-Vidmimic2 names its files; leave any other name alone."""
    return name.zfill(DIGITS) if re.fullmatch(r"\d+", name, re.ASCII) else name
