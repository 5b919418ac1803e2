"""The rules by which names that people write become clip ids."""

import re
import unicodedata
from collections.abc import Collection, Sequence

from cache.errors import ClipNameError

MEDIA_SUFFIXES = frozenset(
    # sound
    ".wav .wave .bwf .rf64 .w64 .flac .mp3 .mp2 .mpa .mpga .ogg .oga .opus .spx .m4a .m4b .m4r .aac .adts .ac3 "
    ".eac3 .ec3 .dts .aif .aiff .aifc .au .snd .caf .amr .awb .3ga .alac .gsm .mka .weba .wma .wv .ape .tta .tak "
    ".shn .voc .sph .ra "
    # films
    ".mp4 .m4v .mov .qt .3gp .3g2 .mkv .mk3d .webm .avi .divx .wmv .asf .flv .f4v .ogv .ogm .ts .mts .m2ts .m2t .mpg "
    ".mpeg .mpe .vob .mxf .nut .rm .rmvb .wtv .dv".split()
)
"""Endings of media, which a name may carry and its clip id does not; any other is part of the name (`clip.v2`).

Files with these endings are taken from a folder; whatever FFmpeg decodes may stand in a list.
"""
_PADDING = re.compile(r"(?:(?<=/)|^)0+(?=[0-9]+(?:/|$))")
"""Leading zeros of a part of a path that is a whole number."""


def clip_id(name: str) -> str:
    """Pad an integer to five digits, as Hume-Vidmimic2 names its files; leave any other name alone."""
    return name.zfill(5) if re.fullmatch(r"\d+", name, re.ASCII) else name


def stored_form(name: str) -> str:
    """The one Unicode form (NFC) in which ids are stored: macOS and Windows write one name in different forms."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def match_ids(names: Sequence[str], known: Collection[str]) -> list[str | None]:
    """Find the clips that names stand for.

    A name that is an id is that clip. Any other is compared, in this order, with Unicode normal form and `\\` or a
    leading `./` set aside; without a media suffix; without the leading zeros of whole numbers. Case counts.

    Args:
        names: as people write them in label files, lists and predictions.
        known: ids, or paths; the names of another table are treated alike, with suffix and zeros of their own.

    Returns:
        Per name, the one of `known` that it stands for, or None where there is none.

    Raises:
        ClipNameError: a name stands for several clips, or two names for one.
    """
    found = find_ids(names, known)
    refuse_repeated(names, found)
    return found


def find_ids(names: Sequence[str], known: Collection[str]) -> list[str | None]:
    """As `match_ids`, where several names may stand for one clip."""
    if all(name in known for name in names):
        return list(names)
    alike: dict[str, list[str]] = {_loose(name): [] for name in names if name not in known}
    for name in known:
        if (form := _loose(name)) in alike:
            alike[form].append(name)
    return [name if name in known else _nearest(name, alike[_loose(name)]) for name in names]


def _nearest(name: str, candidates: Sequence[str]) -> str | None:
    """Return the id that a name stands for, of those with the same loosest form."""
    for form in (tidy, lambda name: without_suffix(tidy(name)), _loose):
        found = [candidate for candidate in candidates if form(candidate) == form(name)]
        if len(found) > 1:
            raise ClipNameError(f"{name!r} may be any of {', '.join(_shown(found))}; write it as one of them")
        if found:
            return found[0]
    return None


def refuse_repeated(names: Sequence[str], ids: Sequence[str | None]) -> None:
    """Refuse two names for one clip.

    Raises:
        ClipNameError: gives both names.
    """
    first: dict[str, str] = {}
    for name, clip in zip(names, ids, strict=True):
        if clip is not None and first.setdefault(clip, name) != name:
            both = " and as ".join(_shown([first[clip], name]))
            raise ClipNameError(f"clip {clip!r} is listed twice, as {both}; keep one of the two")


def tidy(name: str) -> str:
    """A name in NFC, with `/` between its parts and no `./` before them."""
    name = stored_form(name).replace("\\", "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def without_suffix(name: str) -> str:
    """A name without the ending of a media file, in any case; `.wav` alone is a name."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and not stem.endswith("/") and dot + ending.lower() in MEDIA_SUFFIXES else name


def _loose(name: str) -> str:
    return _PADDING.sub("", without_suffix(tidy(name)))


def _shown(names: Sequence[str]) -> list[str]:
    """Names so that they can be told apart: those that differ in their Unicode form alone look the same."""
    alike = len(set(map(stored_form, names))) < len(names)
    return list(map(ascii if alike else repr, names))
