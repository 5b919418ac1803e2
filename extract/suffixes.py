"""Which files of a folder are media: those whose suffix is that of a format that FFmpeg decodes."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cache.ids import MEDIA_SUFFIXES
from cache.paths import at_home, readable


def left_out(media: str | os.PathLike[str]) -> dict[str, int]:
    """Count the files of a folder that are not taken, by suffix; hidden ones are not counted. Nothing for a list."""
    found: Counter[str] = Counter()
    for _, folders, files in os.walk(at_home(os.fspath(media))):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".zarr")]
        found.update(
            readable(suffix) or "without suffix"
            for name in files
            if not name.startswith(".") and (suffix := Path(name).suffix.lower()) not in MEDIA_SUFFIXES
        )
    return dict(found.most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """For example "3 files (.txt 2, .csv 1)"."""
    total = sum(counts.values())
    shown = ", ".join(f"{suffix} {count}" for suffix, count in list(counts.items())[:8])
    return f"{total} file{'s' * (total != 1)} ({shown}{', …' if len(counts) > 8 else ''})"
