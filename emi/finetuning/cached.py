"""Streams of caches beside the one whose backbone learns: named, opened, and joined with the clips that have media."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from emi.finetuning.processes import Processes
from train_head.data.gather import gather_streams, open_stores
from train_head.data.names import UNNAMED, Caches, by_stream
from train_head.data.splits import Split
from train_head.errors import TrainSettingsError
from train_head.runs.inputs import CachedFeatures


def open_cached(caches: Caches | None, learning: str) -> CachedFeatures:
    """Open the caches of the streams that stay as they are.

    Args:
        caches: by stream; None where there are none.
        learning: name of the stream whose backbone learns.

    Raises:
        TrainSettingsError: a cache has no name, or that of the stream whose backbone learns.
        CacheError: it cannot be opened, or those of one stream differ.
    """
    named = by_stream(caches) if caches else {}
    if UNNAMED in named:
        raise TrainSettingsError(
            f"the cache {named[UNNAMED][0]} has no name; beside a backbone that learns, each is given as "
            "--cache NAME=PATH, such as --cache text=text.zarr"
        )
    if learning in named:
        raise TrainSettingsError(
            f"--cache {learning}={named[learning][0]}: the backbone that learns gives the stream {learning!r} from the "
            "media; leave this cache out, or give it another name"
        )
    return CachedFeatures(named, open_stores(named))


def with_cached(
    splits: Mapping[str, Split], cached: CachedFeatures, processes: Processes, folder: Path
) -> dict[str, Split]:
    """Return splits with the rows of the cached streams, which all of them share; a clip may lack a stream.

    Several processes of a machine map one copy of the rows, where each stream has one cache.

    Args:
        splits: with the stream whose backbone learns.
        cached: the other streams.
        processes: that share the work.
        folder: existing, in which the map is made.
    """
    clips = {name: split.labels.ids for name, split in splits.items()}
    mapped = processes.count > 1 and bool(cached.stores) and all(len(c) == 1 for c in cached.stores.values())
    with _passing_folder(processes, folder) if mapped else contextlib.nullcontext() as shared:
        found = gather_streams(cached.stores, clips, shared)
    rows = {name: {s: stream.only_valid() for s, stream in streams.items()} for name, streams in found.items()}
    return {
        name: replace(split, streams=dict(sorted({**split.streams, **rows[name]}.items())))
        for name, split in splits.items()
    }


@contextlib.contextmanager
def _passing_folder(processes: Processes, parent: Path) -> Iterator[Path]:
    """Make a folder that the processes have in common, and remove it at the end; files stay mapped without a name."""
    made = tempfile.mkdtemp(prefix="streams-", dir=parent) if processes.first else ""
    folder = Path(processes.from_first(made))
    try:
        yield folder
        processes.wait()
    finally:
        if processes.first_here:
            shutil.rmtree(folder, ignore_errors=True)
