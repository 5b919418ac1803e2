"""Which clips to extract: from a folder, a CSV with a Filename column, or a text list. A clip is a file.

Of faces, a folder of images is a clip as well.

A clip's id is its path under the media root, without suffix, `/`-separated, in Unicode's form NFC.
"""

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ClipNameError, TableError
from cache.exchange.tables import FILENAME, read_table
from cache.ids import MEDIA_SUFFIXES, clip_id, find_ids, refuse_repeated, stored_form, tidy, without_suffix
from cache.paths import StrPath, at_home, is_utf8, readable
from extract.errors import MediaListError
from extract.faces.crop_table import RECORD, TABLE, is_crop_table

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """One clip to extract. Whether its file exists and can be read is only known when it is decoded.

    Attributes:
        id: of the clip.
        path: of its file, or of its folder of images.
        problem: why it cannot be extracted, where that is known before decoding; its id is then only for display.
        video: of a folder of images, the video whose frames they are, where that was asked for.
    """

    id: str
    path: Path
    problem: str = ""
    video: Path | None = None


def find_media(media: StrPath, media_root: StrPath | None = None, *, images: bool = False) -> list[Source]:
    """List the clips of a folder (recursively), a CSV or a text list, sorted by id.

    Args:
        media: a folder, one media file, `NAME.csv` with a Filename column, or `NAME.txt` with one path a line.
        media_root: folder that the paths of a CSV or list are relative to; by default the folder of the list.
        images: whether a folder of images, below the media root, is a clip as well, called like the folder; so is an
            empty folder beside one, which cannot be read.

    Raises:
        MediaListError: nothing was found, two files have one id, or the list is malformed.
    """
    place = Path(at_home(media))
    root = Path(at_home(media_root)) if media_root is not None else None
    if root is not None and not root.is_dir():
        raise MediaListError(f"--media-root {root} is not a folder")
    if place.is_dir():
        if root is not None:
            raise MediaListError(f"--media-root goes with a CSV or a text list, and {place} is a folder; leave it out")
        sources = [_source(path, place) for path in _walk(place, images)]
    elif not place.exists():
        raise MediaListError(f"there is nothing at {place}; name a folder of media, a CSV or a text list")
    elif is_list(place):
        read = _from_csv if place.suffix.lower() == ".csv" else _from_list
        try:
            sources = read(place, (root or place.parent).absolute(), images)
        except UnicodeDecodeError as error:
            raise MediaListError(f"{place} is not UTF-8 text ({error}); save it as UTF-8") from error
    else:
        sources = [_source(place, place.parent)]
    if not sources:
        folders = "folders of images and " if images else ""
        raise MediaListError(f"{place} holds no media (looked for {folders}{' '.join(sorted(MEDIA_SUFFIXES))})")
    sources.sort()
    for one, other in itertools.pairwise(sources):
        if one.id == other.id:
            raise _clash(one.id, [one.path, other.path])
    return sources


def is_list(media: StrPath) -> bool:
    """Whether a path is a file that lists media."""
    place = Path(at_home(media))
    return place.suffix.lower() in (".csv", *LIST_SUFFIXES) and place.is_file()


def is_image(name: str) -> bool:
    """Whether a file is one of the images of a clip, by its name."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _walk(root: Path, images: bool) -> Iterator[Path]:
    seen = set()
    empty, beside = list[Path](), set[Path]()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        nothing = all(name.startswith(".") for name in (*folders, *files))
        media_like = [name for name in folders if _is_media(name)]  # a folder named x.wav: reported when decoded
        # Sorted: of two links to one folder the first gives the ids, and that must be the same on every machine.
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in media_like)
        yield from (Path(folder, name) for name in [*files, *media_like] if _is_media(name))
        place = Path(folder)
        if images and place != root and _holds_rows(place, files):
            beside.add(place.parent)
            yield place
        elif nothing:
            empty.append(place)
    yield from (place for place in empty if place.parent in beside)


def _holds_rows(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder is a clip: it holds images, or the table of crops, of which a clip without any face has none."""
    if RECORD in files:  # holds the crops of all clips, and a picture of some
        return False
    return any(map(is_image, files)) or (TABLE in files and is_crop_table(folder / TABLE))


def _unreadable(error: OSError) -> None:
    raise MediaListError(
        f"folder {error.filename} cannot be read ({error.strerror}); change its permissions"
    ) from error


def _is_media(name: str) -> bool:
    return Path(name).suffix.lower() in MEDIA_SUFFIXES and not name.startswith(".")


def _source(path: Path, root: Path) -> Source:
    name = str(path.relative_to(root)) if path.is_relative_to(root) else ""
    return Source(_id_of(path, root), path, "" if is_utf8(name) else "has a name that is not UTF-8; rename it")


def _id_of(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        raise MediaListError(f"{path} is not under {root}; name a folder that holds all clips with --media-root")
    whole = path.suffix.lower() not in MEDIA_SUFFIXES and path.is_dir()  # a folder of images
    return stored_form(readable((path if whole else path.with_suffix("")).relative_to(root).as_posix()))


def _from_csv(place: Path, root: Path, images: bool) -> list[Source]:
    """Read the Filename column; names may lack their suffix, see `cache.ids.match_ids`."""
    try:
        table = read_table(place)
    except TableError as error:
        raise MediaListError(str(error)) from error
    if FILENAME not in table.header:
        raise MediaListError(f"{place} has no Filename column; its header is {', '.join(table.header)}")
    column = table.header.index(FILENAME)
    names = [cells[column] if column < len(cells) else "" for cells in table.rows]
    if "" in names:
        raise MediaListError(f"{table.where(names.index(''))}: the Filename is empty")
    sources = _named(names, root, place, images)
    if names and not any(source.path.exists() for source in sources):
        raise MediaListError(
            f"none of the {len(names)} clips of {place} (first: {names[0]}) was found under {root}; name their "
            "folder with --media-root"
        )
    return sources


def _from_list(place: Path, root: Path, images: bool) -> list[Source]:
    """Read one path per line, relative to the root or absolute; skip blank lines and # comments."""
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines()]
    names = [at_home(line) for line in lines if line and not line.startswith("#")]
    paths = [root / name for name in names]
    if all(path.is_relative_to(root) for path in paths):
        return _named(names, root, place, images)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [_source(path, root) for path in paths]


def _named(names: Sequence[str], root: Path, place: Path, images: bool) -> list[Source]:
    """Return the media with these names; those that are not found fail when they are decoded."""
    paths = {name: _path_of(name, root, images) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    by_id: dict[str, list[Path]] = defaultdict(list)
    for path in _walk(root, images) if missing else ():
        by_id[_id_of(path, root)].append(path)
    try:
        matched = zip(missing, find_ids(missing, by_id), strict=True)
        paths |= {name: _choose(name, clip, by_id[clip]) for name, clip in matched if clip is not None}
        found = [(name, paths[name]) for name in names]
        sources = [_source(path, root) if path else _missing(name, root) for name, path in found]
        refuse_repeated(names, [source.id for source in sources])
    except ClipNameError as error:
        raise MediaListError(f"{place}: {error}") from error
    return sources


def _path_of(name: str, root: Path, images: bool) -> Path | None:
    """Find the file, or folder of images, of exactly this name.

    Or with `/` for `\\` and without a leading `./`, or in the home folder.
    """
    forms = dict.fromkeys((name, tidy(name), at_home(name)))
    return next((p for form in forms if (p := root / form).is_file() or (images and p.is_dir())), None)


def _choose(name: str, wanted: str, found: list[Path]) -> Path:
    """Return the file with the suffix of the name, among files with one id."""
    same = [path for path in found if path.suffix.lower() == Path(name).suffix.lower()] if len(found) > 1 else found
    if len(same) != 1:
        raise _clash(wanted, found)
    return same[0]


def _missing(name: str, root: Path) -> Source:
    whole = tidy(name)
    bare = without_suffix(whole)
    return Source(_id_of(root / whole, root) if bare != whole else clip_id(bare), root / name)


def _clash(name: str, found: list[Path]) -> MediaListError:
    a, b = sorted(found)[:2]
    same = "is listed twice" if a == b else f"stands for two files, {a} and {b}"
    return MediaListError(f"clip id {name!r} {same}; an id must name one file: remove or rename one of them")


def left_out(media: StrPath, *, images: bool = False) -> dict[str, int]:
    """Count the files of a folder that are skipped, by suffix; hidden files are not counted. A list gives nothing."""
    taken = MEDIA_SUFFIXES | IMAGE_SUFFIXES if images else MEDIA_SUFFIXES
    found: Counter[str] = Counter()
    for _, folders, files in os.walk(at_home(os.fspath(media))):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".zarr")]
        read = {TABLE, RECORD} if images else set()
        suffixes = (Path(name).suffix.lower() for name in files if not name.startswith(".") and name not in read)
        found.update(readable(suffix) or "without suffix" for suffix in suffixes if suffix not in taken)
    return dict(found.most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """Return a text such as "3 files (.txt 2, .csv 1)"."""
    total = sum(counts.values())
    shown = ", ".join(f"{suffix} {count}" for suffix, count in list(counts.items())[:8])
    return f"{total} file{'s' * (total != 1)} ({shown}{', …' if len(counts) > 8 else ''})"
