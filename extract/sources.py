"""Which clips to extract: from a folder, a CSV with a Filename column, or a text list.

A clip's id is its path under the media root, without suffix, `/`-separated.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cache.ids import clip_id
from extract.errors import MediaListError

SUFFIXES = frozenset(".wav .flac .mp3 .ogg .oga .opus .m4a .aac .mp4 .m4v .mov .mkv .webm .avi .wma .aif .aiff".split())
"""Files with these suffixes are taken from a folder; whatever FFmpeg decodes may stand in a list."""
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """One clip to extract. `path` may be missing or unreadable: that is found out when it is decoded."""

    id: str
    path: Path


def find_media(media: StrPath, media_root: StrPath | None = None) -> list[Source]:
    """List the clips of a folder (recursively), a CSV or a text list, sorted by id.

    Args:
        media: a folder, one media file, `NAME.csv` with a Filename column, or `NAME.txt` with one path a line.
        media_root: where the paths of a CSV or list start; the list's own folder by default.

    Raises:
        MediaListError: nothing there, nothing found, two files with one id, or a malformed list.
    """
    place = Path(media).expanduser()
    root = Path(media_root).expanduser() if media_root is not None else None
    if root is not None and not root.is_dir():
        raise MediaListError(f"--media-root {root} is not a folder")
    if place.is_dir():
        if root is not None:
            raise MediaListError(f"--media-root goes with a CSV or a text list, and {place} is a folder; leave it out")
        sources = [Source(_id_of(path, place), path) for path in _walk(place)]
    elif not place.exists():
        raise MediaListError(f"there is nothing at {place}; name a folder of media, a CSV or a text list")
    elif place.suffix.lower() == ".csv" or place.suffix.lower() in LIST_SUFFIXES:
        read = _from_csv if place.suffix.lower() == ".csv" else _from_list
        try:
            sources = list(read(place, (root or place.parent).absolute()))
        except UnicodeDecodeError as error:
            raise MediaListError(f"{place} is not UTF-8 text ({error}); save it as UTF-8") from error
    else:
        sources = [Source(_id_of(place, place.parent), place)]
    if not sources:
        raise MediaListError(f"{place} holds no media (looked for {' '.join(sorted(SUFFIXES))})")
    _refuse_clashes(sources)
    return sorted(sources)


def _walk(root: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        media_like = [name for name in folders if _is_media(name)]  # a folder named x.wav: reported when decoded
        # Sorted, because of two links to one folder the first gives the ids, on every machine the same.
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in media_like)
        yield from (Path(folder, name) for name in [*files, *media_like] if _is_media(name))


def _unreadable(error: OSError) -> None:
    raise MediaListError(f"folder {error.filename} cannot be read ({error.strerror}); mend its permission") from error


def _is_media(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _id_of(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        raise MediaListError(f"{path} is not under {root}; name a folder that holds all clips with --media-root")
    name = path.relative_to(root).with_suffix("").as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MediaListError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename it") from None
    return name


def _from_csv(place: Path, root: Path) -> Iterator[Source]:
    """Rows with or without suffix; integers find their five-digit file."""
    with place.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        column = next((n for n in rows.fieldnames or () if n.strip().lower() == "filename"), None)
        if column is None:
            raise MediaListError(f"{place} has no Filename column; its header is {rows.fieldnames}")
        names = [(rows.line_num, (row[column] or "").strip()) for row in rows]
    by_id: dict[str, list[Path]] = defaultdict(list)
    for path in _walk(root):
        by_id[_id_of(path, root)].append(path)
    for line, name in names:
        if not name:
            raise MediaListError(f"{place}, line {line}: the Filename is empty")
        if _is_media(name) or (root / name).is_file():
            yield Source(_id_of(root / name, root), root / name)
            continue
        wanted = clip_id(name)
        found = by_id.get(wanted, [])
        if len(found) > 1:
            raise _clash(wanted, found)
        yield Source(wanted, found[0] if found else root / wanted)
    if names and not any(clip_id(Path(n).with_suffix("").as_posix()) in by_id or (root / n).exists() for _, n in names):
        raise MediaListError(
            f"none of the {len(names)} clips of {place} (first: {names[0][1]}) was found under {root}; name their "
            "folder with --media-root"
        )


def _from_list(place: Path, root: Path) -> Iterator[Source]:
    """One path a line, relative to the root or absolute; blank lines and # comments are skipped."""
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines()]
    paths = [root / line for line in lines if line and not line.startswith("#")]
    outside = [path for path in paths if not path.is_relative_to(root)]
    if outside:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    yield from (Source(_id_of(path, root), path) for path in paths)


def _refuse_clashes(sources: Iterable[Source]) -> None:
    paths: dict[str, list[Path]] = defaultdict(list)
    for source in sources:
        paths[source.id].append(source.path)
    for name, found in paths.items():
        if len(found) > 1:
            raise _clash(name, found)


def _clash(name: str, found: list[Path]) -> MediaListError:
    a, b = sorted(found)[:2]
    same = "is listed twice" if a == b else f"stands for two files, {a} and {b}"
    return MediaListError(f"clip id {name!r} {same}; an id must name one file: remove or rename one of them")
