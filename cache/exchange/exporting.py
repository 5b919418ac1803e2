"""Hand a cache to other tools: NPZ files, Parquet, a Hugging Face dataset, or memory-mapped NumPy arrays.

    export(store, "features.parquet", "parquet")

Every export says what it was made from: the fingerprint, and a checksum over all clips. An export that is there
already and was made from the same clips is left alone; anything else in its place is refused.
"""

import importlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import CacheWriteError, EmiError
from cache.exchange.export_arrow import write_datasets, write_parquet
from cache.exchange.export_numpy import write_npy, write_npz
from cache.exchange.selection import MANIFEST, UNNAMEABLE, ExportError, Selection, manifest_of, must_fit
from cache.maintenance.verify import Progress
from cache.paths import StrPath, at_home
from cache.reader import FeatureCache
from cache.system.disk import sync

WHOLE: dict[str, Callable[[Selection, Path], None]] = {
    "npy": write_npy,
    "parquet": write_parquet,
    "datasets": write_datasets,
}
"""What writes each kind that appears when it is complete; `npz` may gain files."""
KINDS = ("npz", *WHOLE)
NEEDS = {"parquet": ("pyarrow",), "datasets": ("pyarrow", "datasets")}
"""Packages of the extra `arrow`."""


class ExportDependencyError(EmiError, ImportError):
    """A package that only some exports need is not installed."""


@dataclass(kw_only=True)
class ExportSummary:
    """What an export did.

    Attributes:
        path: where.
        written: clips.
        present: clips that an earlier run had exported.
    """

    path: str
    written: int
    present: int


def export(
    store: FeatureCache,
    target: StrPath,
    kind: str,
    ids: Sequence[str] | None = None,
    on_progress: Progress | None = None,
) -> ExportSummary:
    """Write clips of a cache in a format that other tools read.

    `npz` resumes where an earlier run stopped; the other kinds appear at `target` when they are complete. An
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
    if kind not in KINDS:
        raise ExportError(f"--to must be one of {', '.join(KINDS)}, got {kind!r}")
    for package in NEEDS.get(kind, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportDependencyError(
                f"this export needs the package {package!r}; install it with: pip install 'emi-mimicry[arrow]'"
            ) from error
    wanted = list(store.ids if ids is None else ids)
    if not wanted:
        raise ExportError(f"{store.path}: there are no clips to export; fill it with `emi extract`, or name its clips")
    clip_id, times = Counter(wanted).most_common(1)[0]
    if times > 1:
        raise ExportError(f"clip {clip_id!r} is to be exported twice; name it once")
    place = Path(os.path.abspath(at_home(target)))
    selection = Selection(store=store, ids=wanted, manifest=manifest_of(store, kind, wanted), on_progress=on_progress)
    written = 0
    try:
        there = must_fit(place, selection.manifest)
        if kind == "npz":
            written = write_npz(selection, place)
        elif not there:
            _write_whole(WHOLE[kind], selection, place)
            written = len(wanted)
    except EmiError:
        raise
    except OSError as error:
        remedy = (
            "choose another OUT"
            if error.errno in UNNAMEABLE
            else "make room or mend the permission, then run the same command again"
        )
        raise CacheWriteError(f"{place} could not be written: {error}; {remedy}") from error
    return ExportSummary(path=os.fspath(target), written=written, present=len(wanted) - written)


def _write_whole(write: Callable[[Selection, Path], None], selection: Selection, place: Path) -> None:
    """Write beside the target, and move it there when it is complete and on the disk."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", suffix=".partial", dir=place.parent) as scratch:
        partial = Path(scratch, place.name)
        write(selection, partial)
        if partial.is_dir():
            (partial / MANIFEST).write_text(json.dumps(selection.manifest, indent=2), encoding="utf-8")
        for path in partial.iterdir() if partial.is_dir() else [partial]:
            sync(path)
        os.replace(partial, place)
