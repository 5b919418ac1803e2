"""`failures.csv` beside a cache: one row per clip that could not be read; `truncated.csv`: those used in part."""

import csv
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.system.locks import Lock

COLUMNS = ("id", "path", "reason", "cache")
TRUNCATED = "truncated.csv"
"""Beside `failures.csv`, with the same columns: clips that were used although their files are cut off."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that could not be turned into features, and why. `path` is empty where the file is not to blame."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """What should be known of a clip that was used.

    Attributes:
        id: of the clip.
        path: of its file.
        track: which audio track was used, where there are several; else "".
        cut_off: why the file is not whole, where that was allowed; else "".
    """

    id: str
    path: str
    track: str = ""
    cut_off: str = ""


def failures_path(cache: str, name: str = "failures.csv") -> Path:
    """`failures.csv` in the cache's folder, or in the working folder for a cache at a URL."""
    return Path(name) if "://" in cache else Path(cache).parent / name


def write_truncated(cache: str, notes: Sequence[Note], tried: Collection[str]) -> Path | None:
    """List the clips that were used although their files are cut off, in `truncated.csv`; as `write_failures`."""
    rows = [Failure(note.id, note.path, note.cut_off) for note in notes if note.cut_off]
    return write_failures(cache, rows, tried, failures_path(cache, TRUNCATED))


def write_failures(
    cache: str, failures: Sequence[Failure], tried: Collection[str], path: Path | None = None
) -> Path | None:
    """Replace the rows of the clips that this run tried; rows of other caches and other shards stay.

    Args:
        cache: of which the clips are.
        failures: the rows.
        tried: ids of the clips.
        path: of the list; `failures_path` by default.

    Returns:
        The file, or None where no row is left and it was removed.
    """
    path, name = path or failures_path(cache), os.path.basename(cache.rstrip("/"))
    attempted = set(tried)
    if not failures and not path.exists():
        return None
    with Lock(path.parent):  # jobs that end together would drop each other's rows
        return _replace(path, name, failures, attempted)


def _replace(path: Path, name: str, failures: Sequence[Failure], attempted: set[str]) -> Path | None:
    kept = [row for row in _rows(path) if row["cache"] != name or row["id"] not in attempted]
    rows = kept + [{"id": f.id, "path": f.path, "reason": f.reason, "cache": name} for f in failures]
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
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []
