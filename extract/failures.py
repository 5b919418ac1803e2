"""Lists beside a cache: `failures.csv`, the clips that could not be read; `truncated.csv`, those used in part."""

import csv
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.system.locks import Lock

COLUMNS = ("id", "path", "reason", "cache")
FAILURES = "failures.csv"
TRUNCATED = "truncated.csv"


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that could not be extracted, and why. `path` is empty where the problem is not the file."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """What the user should know about the file of an extracted clip.

    Attributes:
        id: of the clip.
        path: of its file.
        track: the audio track that was used where the file has several, else "".
        cut_off: why the file is incomplete, where that was allowed, else "".
        missing: share of rows in which nothing was found, such as no face.
        remark: what else the user should know of how it was read, else "".
        others: number of other people that the clip shows.
    """

    id: str
    path: str
    track: str = ""
    cut_off: str = ""
    missing: float = 0.0
    remark: str = ""
    others: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing that a user should know."""
        return not (self.track or self.cut_off or self.missing or self.remark or self.others)


ClipResult = tuple[str, float, Failure | Note | None]
"""A clip's id and its seconds, with its failure, or with a note where there is something to know."""
OnResult = Callable[[str, float, Failure | Note | None], None]
"""Called with the parts of a `ClipResult`."""


def failures_path(cache: str, name: str = FAILURES) -> Path:
    """Return the path of a list in the cache's folder, or in the working folder for a cache at a URL."""
    return Path(name) if "://" in cache else Path(cache).parent / name


def caches_of(path: Path) -> set[str]:
    """Return the names of the caches, or folders of crops, whose clips a list holds."""
    return {row["cache"] for row in _rows(path)}


def write_truncated(cache: str, notes: Sequence[Note], tried: Collection[str]) -> Path | None:
    """List in `truncated.csv` the clips that were used although their files are cut off; see `write_failures`."""
    rows = [Failure(note.id, note.path, note.cut_off) for note in notes if note.cut_off]
    return write_failures(cache, rows, tried, failures_path(cache, TRUNCATED))


def write_failures(
    cache: str, failures: Sequence[Failure], tried: Collection[str], path: Path | None = None
) -> Path | None:
    """Replace the rows of the clips that this run tried. Rows of other caches and other shards stay.

    Args:
        cache: to which the clips belong.
        failures: the new rows.
        tried: ids of the clips.
        path: of the list; `failures_path` by default.

    Returns:
        The file, or None where no row is left and the file was removed.
    """
    path, name, tried = path or failures_path(cache), os.path.basename(cache.rstrip("/")), frozenset(tried)
    if not failures and not path.exists():
        return None
    with Lock(path.parent):  # jobs that end at the same time would drop each other's rows
        rows = [row for row in _rows(path) if row["cache"] != name or row["id"] not in tried]
        rows += [{"id": f.id, "path": f.path, "reason": f.reason, "cache": name} for f in failures]
        if not rows:
            path.unlink(missing_ok=True)
            return None
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (row["cache"], row["id"])))
        temporary.replace(path)
    return path


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a list; a file with other columns is replaced."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []
