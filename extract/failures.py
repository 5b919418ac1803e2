"""`failures.csv` beside a cache: one row per clip that could not be read."""

import contextlib
import csv
import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("id", "path", "reason", "cache")


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that could not be turned into features, and why. `path` is empty where the file is not to blame."""

    id: str
    path: str
    reason: str


def failures_path(cache: str) -> Path:
    """`failures.csv` in the cache's folder, or in the working folder for a cache at a URL."""
    return Path("failures.csv") if "://" in cache else Path(cache).parent / "failures.csv"


def write_failures(cache: str, failures: Sequence[Failure], tried: Collection[str]) -> Path | None:
    """Replace the rows of the clips that this run tried; rows of other caches and other shards stay.

    Returns:
        The file, or None where no row is left and it was removed.
    """
    path, name = failures_path(cache), os.path.basename(cache.rstrip("/"))
    attempted = set(tried)
    if not failures and not path.exists():
        return None
    with _locked(path.parent):
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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks: jobs that end together would drop each other's rows."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []
