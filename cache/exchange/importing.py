"""Import features that others computed, one file per clip, into a cache."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import CacheFormatError, CacheNotFoundError, StaleCacheError
from cache.exchange.feature_files import FeatureFile, FeatureFileError, find_features, read_frames
from cache.exchange.safe_pickle import UnsafePickleError
from cache.format import Clip, Header
from cache.paths import StrPath, at_home, readable
from cache.reader import open_cache
from cache.version import version
from cache.writer import CacheWriter, seal

DTYPES = ("float16", "float32")
NAMED = 5
"""Changed clips that an error names."""

Progress = Callable[[int, int, float], None]
"""Called with files handled so far, files to handle, and seconds of the clip just read."""


class ImportSettingsError(FeatureFileError):
    """A setting of an import is out of its range."""


@dataclass(frozen=True, slots=True)
class ImportFailure:
    """A file that could not be imported, and why."""

    id: str
    path: str
    reason: str


@dataclass(kw_only=True)
class ImportSummary:
    """What an import did.

    Attributes:
        cache: where.
        ids: all clips of the folder.
        written: clips.
        present: clips that the cache had before, with the same features.
        seconds: of what was written.
        failures: the files that could not be imported.
    """

    cache: str
    ids: Sequence[str]
    written: int = 0
    present: int = 0
    seconds: float = 0.0
    failures: list[ImportFailure] = field(default_factory=list)


def import_features(
    source: StrPath,
    cache_path: StrPath,
    *,
    name: str | None = None,
    hop_seconds: float,
    dtype: str = "float16",
    on_progress: Progress | None = None,
) -> ImportSummary:
    """Fill a cache with the features of a folder; files that cannot be read are collected, not raised.

    Every file is read on every run: those whose clips the cache has are compared with it before anything is written.
    Interrupted, the cache keeps what was committed, and the same call goes on from there.

    Args:
        source: folder with one (frames, dim) array per clip, searched recursively; see `find_features`.
        cache_path: `NAME.zarr` or `NAME.h5`, created where missing.
        name: what made the features; the folder's name by default.
        hop_seconds: time from one frame to the next.
        dtype: storage of the frames, `float16` or `float32`.
        on_progress: called after each file.

    Raises:
        FeatureFileError: no such folder, nothing in it, two files with one id, or a setting out of range.
        StaleCacheError: the cache holds other features, or files have changed since they were imported.
    """
    if not (np.isfinite(hop_seconds) and hop_seconds > 0):
        raise ImportSettingsError(f"--hop-seconds must be above zero, got {hop_seconds}; 50 frames a second are 0.02")
    if dtype not in DTYPES:
        raise ImportSettingsError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    files = find_features(source)
    root = Path(at_home(source)).resolve()
    job = _Import(
        root=str(root),
        cache=os.fspath(cache_path),
        fingerprint={"backbone": f"import:{name or root.name}", "hop_seconds": float(hop_seconds), "dtype": dtype},
        total=len(files),
        on_progress=on_progress,
        summary=ImportSummary(cache=os.fspath(cache_path), ids=[file.id for file in files]),
    )
    known = job.compare(files)
    job.write([file for file in files if file.id not in known])
    return job.summary


@dataclass(kw_only=True)
class _Import:
    """One run; `dim` is that of the cache, or of the first clip that can be stored."""

    root: str
    cache: str
    fingerprint: dict[str, Any]
    total: int
    on_progress: Progress | None
    summary: ImportSummary
    dim: int | None = None
    done: int = 0

    def compare(self, files: Sequence[FeatureFile]) -> set[str]:
        """Hold the files whose clips the cache has against it; returns the ids of these clips."""
        try:
            store = open_cache(self.cache)
        except CacheNotFoundError:
            return set()
        changed = []
        with store:
            self.dim = store.dim
            header = self._header(store.dim)
            header.must_match(store.header, store.path)
            known = {file.id for file in files if file.id in store}
            for file, clip in self._clips([file for file in files if file.id in known]):
                try:
                    same = header.stored(clip).checksum() == store.checksum(file.id)
                except CacheFormatError:  # it could be stored once
                    same = False
                self.summary.present += same
                if not same:
                    changed.append(file.id)
        if changed:
            named = ", ".join(changed[:NAMED]) + (", …" if len(changed) > NAMED else "")
            raise StaleCacheError(
                f"{len(changed)} files under {self.root} are not what {self.cache} was made from ({named}), and "
                "nothing was written; import them into a new cache"
            )
        return known

    def write(self, files: Sequence[FeatureFile]) -> None:
        """Write the clips that the cache lacks."""
        writer: CacheWriter | None = None
        with ExitStack() as stack:
            for file, clip in self._clips(files):
                header = self._header(self.dim or clip.frames.shape[1])
                try:
                    stored = header.stored(clip)
                except CacheFormatError as error:
                    self._fail(file, error)
                    continue
                if writer is None:  # not before there is a clip to write
                    writer, self.dim = stack.enter_context(CacheWriter(self.cache, header)), header.dim
                writer.add(stored)
                self.summary.written += 1
                self.summary.seconds += clip.seconds
        if writer is None:
            seal(self.cache)

    def _clips(self, files: Sequence[FeatureFile]) -> Iterator[tuple[FeatureFile, Clip]]:
        """Read files as clips; those that cannot be read are noted as failures."""
        for file in files:
            seconds = 0.0
            try:
                frames = read_frames(file.path)
            except (FeatureFileError, UnsafePickleError, OSError) as error:
                self._fail(file, error)
            else:
                seconds = len(frames) * self.fingerprint["hop_seconds"]
                yield file, Clip(file.id, frames, None, None, seconds)
            self.done += 1
            if self.on_progress:
                self.on_progress(self.done, self.total, seconds)

    def _fail(self, file: FeatureFile, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{file.path}: ")
        self.summary.failures.append(ImportFailure(file.id, readable(str(file.path)), reason))

    def _header(self, dim: int) -> Header:
        return Header(
            fingerprint=self.fingerprint,
            dim=dim,
            hop_seconds=self.fingerprint["hop_seconds"],
            provenance={
                "source": self.root,
                "python": platform.python_version(),
                "emi": version(),
                "numpy": metadata.version("numpy"),
            },
        )
