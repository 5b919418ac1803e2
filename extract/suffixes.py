"""Which files of a folder are media: those whose suffix is that of a format that FFmpeg decodes."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

SUFFIXES = frozenset(
    # sound
    ".wav .wave .bwf .rf64 .w64 .flac .mp3 .mp2 .mpa .ogg .oga .opus .spx .m4a .m4b .m4r .aac .adts .ac3 .eac3 .ec3 "
    ".dts .aif .aiff .aifc .au .snd .caf .amr .awb .3ga .gsm .mka .weba .wma .wv .ape .tta .tak .shn .voc .sph .ra "
    # films
    ".mp4 .m4v .mov .qt .3gp .3g2 .mkv .mk3d .webm .avi .divx .wmv .asf .flv .f4v .ogv .ogm .ts .mts .m2ts .m2t .mpg "
    ".mpeg .mpe .vob .mxf .nut .rm .rmvb .wtv .dv".split()
)
"""Files with these suffixes are taken from a folder; whatever FFmpeg decodes may stand in a list."""


def left_out(media: str | os.PathLike[str]) -> dict[str, int]:
    """Count the files of a folder that are not taken, by suffix; hidden ones are not counted. Nothing for a list."""
    found: Counter[str] = Counter()
    for _, folders, files in os.walk(Path(media).expanduser()):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".zarr")]
        found.update(
            suffix or "without suffix"
            for name in files
            if not name.startswith(".") and (suffix := Path(name).suffix.lower()) not in SUFFIXES
        )
    return dict(found.most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """For example "3 files (.txt 2, .csv 1)"."""
    total = sum(counts.values())
    shown = ", ".join(f"{suffix} {count}" for suffix, count in list(counts.items())[:8])
    return f"{total} file{'s' * (total != 1)} ({shown}{', …' if len(counts) > 8 else ''})"
