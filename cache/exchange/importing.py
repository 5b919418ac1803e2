"""Import features that others computed, one file per clip, into a cache."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from cache.errors import CacheFormatError, CacheNotFoundError, StaleCacheError
from cache.exchange.feature_files import FeatureFileError, find_features, read_frames
from cache.exchange.safe_pickle import UnsafePickleError
from cache.format import DTYPES, Clip, Header
from cache.maintenance.verify import Progress
from cache.paths import StrPath, at_home, readable
from cache.reader import FeatureCache, open_cache
from cache.version import version
from cache.writer import CacheWriter, seal


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
    If it is interrupted, the cache keeps what was committed, and the same call resumes.

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
        raise FeatureFileError(f"--hop-seconds must be above zero, got {hop_seconds}; 50 frames a second are 0.02")
    if dtype not in DTYPES:
        raise FeatureFileError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    files = find_features(source)
    root = Path(at_home(source)).resolve()
    header = Header(
        fingerprint={"backbone": f"import:{name or root.name}", "hop_seconds": float(hop_seconds), "dtype": dtype},
        dim=0,
        hop_seconds=float(hop_seconds),
        provenance={
            "source": str(root),
            "python": platform.python_version(),
            "emi": version(),
            "numpy": metadata.version("numpy"),
        },
    )
    job = _Import(header, on_progress, ImportSummary(cache=os.fspath(cache_path), ids=list(files)))
    present: dict[str, Path] = {}
    with suppress(CacheNotFoundError), open_cache(cache_path) as store:
        present = {clip_id: path for clip_id, path in files.items() if clip_id in store}
        job.compare(present, store)
    job.write({clip_id: path for clip_id, path in files.items() if clip_id not in present})
    return job.summary


@dataclass
class _Import:
    """One run; the header's `dim` is 0 until it is that of the cache, or of the first clip that can be stored."""

    header: Header
    on_progress: Progress | None
    summary: ImportSummary
    done: int = 0

    def compare(self, files: Mapping[str, Path], store: FeatureCache) -> None:
        """Count the files that are what clips of the cache were made from.

        Raises:
            StaleCacheError: the cache was made in another way, or files have changed.
        """
        self.header = replace(self.header, dim=store.dim)
        self.header.must_match(store.header, store.path)
        changed = []
        for clip in self._clips(files):
            with suppress(CacheFormatError):  # what changed may be nothing that can be stored
                if self.header.stored(clip).checksum() == store.checksum(clip.id):
                    self.summary.present += 1
                    continue
            changed.append(clip.id)
        if changed:
            named = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
            raise StaleCacheError(
                f"{len(changed)} files under {self.header.provenance['source']} are not what {self.summary.cache} was "
                f"made from ({named}), and nothing was written; import them into a new cache"
            )

    def write(self, files: Mapping[str, Path]) -> None:
        """Write the clips that the cache lacks."""
        writer: CacheWriter | None = None
        with ExitStack() as stack:
            for clip in self._clips(files):
                header = replace(self.header, dim=self.header.dim or clip.frames.shape[1])
                try:
                    stored = header.stored(clip)
                except CacheFormatError as error:
                    self._fail(clip.id, files[clip.id], error)
                    continue
                if writer is None:  # not before there is a clip to write
                    writer, self.header = stack.enter_context(CacheWriter(self.summary.cache, header)), header
                writer.add(stored)
                self.summary.written += 1
                self.summary.seconds += clip.seconds
        if writer is None:
            seal(self.summary.cache)

    def _clips(self, files: Mapping[str, Path]) -> Iterator[Clip]:
        """Read files as clips; those that cannot be read are noted as failures."""
        for clip_id, path in files.items():
            seconds = 0.0
            try:
                frames = read_frames(path)
            except (FeatureFileError, UnsafePickleError, OSError) as error:
                self._fail(clip_id, path, error)
            else:
                clip = Clip(clip_id, frames, None, None, float("nan"))
                seconds = self.header.duration(clip)
                yield replace(clip, seconds=seconds)
            self.done += 1
            if self.on_progress:
                self.on_progress(self.done, len(self.summary.ids), seconds)

    def _fail(self, clip_id: str, path: Path, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
        self.summary.failures.append(ImportFailure(clip_id, readable(str(path)), reason))
