"""Import features that others computed, one file per clip, into a cache."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from cache.errors import CacheFormatError, CacheNotFoundError, StaleCacheError, TableError
from cache.exchange.feature_files import NONZERO, Reading, find_features, read_features
from cache.exchange.features import FeatureFileError, Features
from cache.exchange.safe_pickle import UnsafePickleError
from cache.format import AUDIO, DTYPES, OPTIONAL, Clip, Header
from cache.maintenance.verify import Progress
from cache.paths import StrPath, at_home, readable
from cache.reader import FeatureCache, open_cache
from cache.version import version
from cache.writer import CacheWriter, seal

HOP_SECONDS = 0.02
"""Time from one frame to the next, where neither the files nor the user say it: that of wav2vec 2.0."""
UNREADABLE = (FeatureFileError, UnsafePickleError, TableError, OSError)
"""Errors over a file that the others do not share."""


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
        hop_seconds: time from one frame to the next; None where the files say when frames are.
        written: clips.
        present: clips that the cache had before, with the same features.
        seconds: of what was written.
        empty: clips in which nothing was found; each is one frame that is not valid.
        several_faces: number of people in clips with more than one; the one who is found in most frames was taken.
        failures: the files that could not be imported.
    """

    cache: str
    ids: Sequence[str]
    hop_seconds: float | None = None
    written: int = 0
    present: int = 0
    seconds: float = 0.0
    empty: int = 0
    several_faces: dict[str, int] = field(default_factory=dict)
    failures: list[ImportFailure] = field(default_factory=list)


def import_features(
    source: StrPath,
    cache_path: StrPath,
    *,
    name: str | None = None,
    hop_seconds: float | None = None,
    dtype: str = "float16",
    modality: str = AUDIO,
    valid: str | None = None,
    columns: str | None = None,
    on_progress: Progress | None = None,
) -> ImportSummary:
    """Fill a cache with the features of a folder; files that cannot be read are collected, not raised.

    Every file is read on every run: those whose clips the cache has are compared with it before anything is written.
    If it is interrupted, the cache keeps what was committed, and the same call resumes. The first file that can be
    stored says whether clips have times, marks, and which columns.

    Args:
        source: folder with the features of one clip per file, searched recursively; see `find_features`.
        cache_path: `NAME.zarr` or `NAME.h5`, created where missing.
        name: what made the features; the folder's name by default.
        hop_seconds: time from one frame to the next, where the files have no times; `HOP_SECONDS` by default.
        dtype: storage of the frames, `float16` or `float32`.
        modality: what the features were made from.
        valid: where marks of frames are, in which something was found; see `Reading`.
        columns: regular expression that selects the features of CSVs.
        on_progress: called after each file.

    Raises:
        FeatureFileError: no such folder, nothing in it, two files with one id, or a setting out of range.
        StaleCacheError: the cache holds other features, or files have changed since they were imported.
    """
    files = find_features(source)
    root = Path(at_home(source))
    reading = Reading(root=root, hop_seconds=hop_seconds, valid=valid, columns=_pattern(columns, files))
    _check_settings(reading, dtype, modality, files)
    provenance = {
        "source": str(root.resolve()),
        "python": platform.python_version(),
        "emi": version(),
        "numpy": metadata.version("numpy"),
    }
    fingerprint = {"backbone": f"import:{name or root.resolve().name}", "dtype": dtype}
    header = Header(fingerprint=fingerprint, dim=0, provenance=provenance, modality=modality)
    with ExitStack() as stack:
        store: FeatureCache | None = None
        with suppress(CacheNotFoundError):
            store = stack.enter_context(open_cache(cache_path))
        present = {clip_id: path for clip_id, path in files.items() if store is not None and clip_id in store}
        missing = {clip_id: path for clip_id, path in files.items() if clip_id not in present}
        header = _completed(header, reading, present | missing)
        summary = ImportSummary(cache=os.fspath(cache_path), ids=list(files), hop_seconds=header.hop_seconds)
        job = _Import(header, reading, on_progress, summary)
        if store is not None:
            job.compare(present, store)
    job.write(missing)
    return summary


def _pattern(columns: str | None, files: Mapping[str, Path]) -> re.Pattern[str] | None:
    if columns is None:
        return None
    if not all(path.suffix.lower() == ".csv" for path in files.values()):
        raise FeatureFileError("--columns selects columns of CSVs, and these files are arrays; leave it out")
    try:
        return re.compile(columns)
    except re.error as error:
        raise FeatureFileError(f"--columns {columns!r} is no regular expression ({error})") from error


def _check_settings(reading: Reading, dtype: str, modality: str, files: Mapping[str, Path]) -> None:
    """Refuse settings that no file can be imported with.

    Raises:
        FeatureFileError: names the option.
    """
    hop, valid = reading.hop_seconds, reading.valid
    if hop is not None and not (np.isfinite(hop) and hop > 0):
        raise FeatureFileError(f"--hop must be above zero, got {hop}; 50 frames a second are 0.02")
    if dtype not in DTYPES:
        raise FeatureFileError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not re.fullmatch("[a-z][a-z0-9_]*", modality):
        raise FeatureFileError(f"--modality takes a name such as audio, face or text, got {modality!r}")
    in_arrays = all(path.suffix.lower() == ".npz" for path in files.values())
    if valid not in (None, NONZERO) and not in_arrays and not Path(at_home(valid)).is_dir():
        raise FeatureFileError(
            f"there is no folder {valid}; --valid takes one with a boolean .npy for each clip, or {NONZERO!r}, or the "
            "name of an array in .npz files"
        )


def _completed(header: Header, reading: Reading, files: Mapping[str, Path]) -> Header:
    """Complete a header with what the first file has that can be stored: width, times, marks, columns."""
    first = _header_of(header, Features(frames=np.empty((0, 0))), reading)
    for clip_id, path in files.items():
        with suppress(*UNREADABLE, CacheFormatError):
            features = read_features(path, reading)
            if len(features.frames):
                completed = _header_of(header, features, reading)
                first = completed if first.dim == 0 else first  # of files that all have something wrong
                completed.stored(_clip(clip_id, features, completed))
                return completed
    return first


def _header_of(header: Header, features: Features, reading: Reading) -> Header:
    """Return the header of clips that are like one of them."""
    hop = HOP_SECONDS if reading.hop_seconds is None else float(reading.hop_seconds)
    fingerprint, provenance = dict(header.fingerprint), dict(header.provenance)
    if features.times is None or features.by_frame:
        fingerprint["hop_seconds"] = hop
    if features.columns:
        fingerprint["columns_sha256"] = _digest(features.columns)
        provenance["tool"] = features.tool
    if reading.columns is not None:
        fingerprint["columns"] = reading.columns.pattern
    return replace(
        header,
        fingerprint=fingerprint,
        dim=features.frames.shape[1],
        hop_seconds=hop if features.times is None else None,
        provenance=provenance,
        optional=tuple(name for name in OPTIONAL if getattr(features, name) is not None),
    )


def _digest(columns: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(columns).encode()).hexdigest()


def _clip(clip_id: str, features: Features, header: Header) -> Clip:
    """Return features as a clip as long as its frames; where nothing was found, it has one that is not valid.

    Raises:
        FeatureFileError: the file has not the arrays or columns of the others, or no frames, and there are no marks.
    """
    frames, times, valid = features.frames, features.times, features.valid
    if features.columns and _digest(features.columns) != header.fingerprint.get("columns_sha256"):
        raise FeatureFileError(f"has other columns of features than the first file ({len(features.columns)} of them)")
    if not len(frames):
        if "valid" not in header.optional or not header.dim:
            raise FeatureFileError(f"holds an array of shape {frames.shape}, expected (frames, dim)")
        frames, valid = np.zeros((1, header.dim), header.dtype), np.zeros(1, bool)
        times = np.zeros((1, 2)) if "times" in header.optional else None
    for name, array in (("times", times), ("valid", valid)):
        if (array is None) == (name in header.optional):
            raise FeatureFileError(f"has {'no' if array is None else 'an'} array {name!r}, unlike the first file")
    clip = Clip(clip_id, frames, None, None, float("nan"), times, valid)
    return replace(clip, seconds=header.duration(clip))


@dataclass
class _Import:
    """One run."""

    header: Header
    reading: Reading
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
                try:
                    stored = self.header.stored(clip)
                except CacheFormatError as error:
                    self._fail(clip.id, files[clip.id], error)
                    continue
                if writer is None:  # not before there is a clip to write
                    writer = stack.enter_context(CacheWriter(self.summary.cache, self.header))
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
                features = read_features(path, self.reading)
                clip = _clip(clip_id, features, self.header)
            except UNREADABLE as error:
                self._fail(clip_id, path, error)
            else:
                seconds = clip.seconds
                self.summary.empty += not len(features.frames)
                if features.faces > 1:
                    self.summary.several_faces[clip_id] = features.faces
                yield clip
            self.done += 1
            if self.on_progress:
                self.on_progress(self.done, len(self.summary.ids), seconds)

    def _fail(self, clip_id: str, path: Path, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
        self.summary.failures.append(ImportFailure(clip_id, readable(str(path)), reason))
