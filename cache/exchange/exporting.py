"""Hand a cache to other tools: NPZ files, Parquet, a Hugging Face dataset, or memory-mapped NumPy arrays.

    export(store, "features.parquet", "parquet")

Every export says what it was made from: the fingerprint, and a checksum over all clips. An export that is there
already and was made from the same clips is left alone; anything else in its place is refused.
"""

import errno
import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import CacheError, CacheWriteError, EmiError
from cache.exchange.export_manifest import manifest_of, must_fit
from cache.format import Clip
from cache.paths import StrPath, at_home
from cache.reader import FeatureCache

CHUNK_BYTES = 8 << 20
"""Frames held in memory at a time; a row group of Parquet, whose writer takes a dozen times as much: 0.3 GB in all."""

KINDS = {
    "npz": "cache.exchange.export_numpy:write_npz",
    "npy": "cache.exchange.export_numpy:write_npy",
    "parquet": "cache.exchange.export_arrow:write_parquet",
    "datasets": "cache.exchange.export_arrow:write_datasets",
}
"""What writes each kind, imported when it is asked for."""
NEEDS = {"parquet": ("pyarrow",), "datasets": ("pyarrow", "datasets")}
"""Packages of the extra `arrow`."""

Progress = Callable[[int, int, float], None]
"""Called with clips handled so far, clips to handle, and seconds of the clip just handled."""


class ExportError(CacheError, ValueError):
    """A cache cannot be exported as asked for."""


class ExportDependencyError(EmiError, ImportError):
    """A package that only some exports need is not installed.

    Args:
        package: its name on the package index.
    """

    def __init__(self, package: str) -> None:
        super().__init__(
            f"this export needs the package {package!r}; install it with: pip install 'emi-mimicry[arrow]'"
        )


@dataclass(kw_only=True)
class ExportSummary:
    """What an export did.

    Attributes:
        path: where.
        written: clips.
        present: clips that an earlier run had exported.
    """

    path: str
    written: int = 0
    present: int = 0


@dataclass(kw_only=True)
class Selection:
    """The clips to export, and what is said about them.

    Attributes:
        store: the cache.
        ids: of the clips, in the order of the export.
        manifest: what the export is made from, JSON-able.
        on_progress: called after each clip.
        done: clips handled so far.
    """

    store: FeatureCache
    ids: Sequence[str]
    manifest: dict[str, Any]
    on_progress: Progress | None = None
    done: int = 0

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame with its VAD."""
        return self.store.dim * self.store.header.dtype.itemsize + 4 * len(self.store.vad_names)

    def chunks(self) -> Iterator[list[str]]:
        """Cut the ids so that the frames of each part take `CHUNK_BYTES` at most, or are one clip."""
        offsets = self.store.offsets(self.ids)
        first = 0
        for i in range(1, len(self.ids)):
            if (offsets[i + 1] - offsets[first]) * self.frame_bytes > CHUNK_BYTES:
                yield list(self.ids[first:i])
                first = i
        yield list(self.ids[first:])

    def clips(self, ids: Sequence[str]) -> Iterator[Clip]:
        """Read clips one by one, and count them."""
        for clip_id in ids:
            clip = self.store[clip_id]
            yield clip
            self.count(len(clip.frames))

    def count(self, frames: int) -> None:
        """Report that one more clip is done."""
        self.done += 1
        if self.on_progress:
            self.on_progress(self.done, len(self.ids), frames * self.store.hop_seconds)


def export(
    store: FeatureCache,
    target: StrPath,
    kind: str,
    ids: Sequence[str] | None = None,
    on_progress: Progress | None = None,
) -> ExportSummary:
    """Write clips of a cache in a format that other tools read.

    `npz` goes on where an earlier run stopped; the other kinds appear at `target` when they are complete. An
    export of the same clips that is there already is left alone.

    Args:
        store: an open cache.
        target: a folder; for `parquet`, a file.
        kind: `npz` (`cache.exchange.export_numpy`), `npy`, `parquet` (`cache.exchange.export_arrow`) or `datasets`.
        ids: clips to export, in this order; all of them by default.
        on_progress: called after each clip.

    Raises:
        ExportError: an unknown kind, no clips, an id twice, or one that cannot be exported.
        ExportExistsError: `target` is something else, or made from other clips.
        ExportDependencyError: pyarrow or datasets is missing.
        UnknownClipError, DamagedCacheError: a clip is not in the cache, or damaged.
        CacheWriteError: the disk is full, or the like.
    """
    write = _writer(kind)
    wanted = list(store.ids if ids is None else ids)
    if not wanted:
        raise ExportError(f"{store.path}: there are no clips to export; fill it with `emi extract`, or name its clips")
    if len(set(wanted)) < len(wanted):
        seen: set[str] = set()
        twice = next(clip_id for clip_id in wanted if clip_id in seen or seen.add(clip_id))  # type: ignore[func-returns-value]
        raise ExportError(f"clip {twice!r} is to be exported twice; name it once")
    place = Path(os.path.abspath(at_home(target)))
    selection = Selection(store=store, ids=wanted, manifest=manifest_of(store, kind, wanted), on_progress=on_progress)
    summary = ExportSummary(path=os.fspath(target))
    try:
        if kind == "npz":
            must_fit(place, selection.manifest)
            write(selection, place, summary)
        elif must_fit(place, selection.manifest):
            summary.present = len(wanted)
        else:
            _write_whole(write, selection, place, summary)
    except OSError as error:
        if isinstance(error, EmiError):
            raise
        elsewhere = error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
        remedy = (
            "choose another OUT" if elsewhere else "make room or mend the permission, then run the same command again"
        )
        raise CacheWriteError(f"{place} could not be written: {error}; {remedy}") from error
    return summary


def _writer(kind: str) -> Callable[[Selection, Path, ExportSummary], None]:
    if kind not in KINDS:
        raise ExportError(f"--to must be one of {', '.join(KINDS)}, got {kind!r}")
    for package in NEEDS.get(kind, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportDependencyError(package) from error
    module, name = KINDS[kind].split(":")
    write: Callable[[Selection, Path, ExportSummary], None] = getattr(importlib.import_module(module), name)
    return write


def _write_whole(
    write: Callable[[Selection, Path, ExportSummary], None], selection: Selection, place: Path, summary: ExportSummary
) -> None:
    """Write beside the target, and move it there when it is complete and on the disk."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        write(selection, partial, summary)
        for path in partial.iterdir() if partial.is_dir() else [partial]:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, place)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
