"""Streams of caches beside the one whose backbone learns: named, opened, and loaded for the clips that have media."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from emi.finetuning.processes import Processes
from train_head.data.gather import gather_streams, open_stores
from train_head.data.links import linked, read_links
from train_head.data.names import UNNAMED, Caches, by_stream
from train_head.data.streams import Stream
from train_head.errors import TrainSettingsError
from train_head.runs.inputs import CachedFeatures


def open_cached(caches: Caches | None, learning: str, ids: Sequence[str] = ()) -> CachedFeatures:
    """Open the caches of the streams that stay as they are.

    Args:
        caches: by stream; None where there are none.
        learning: name of the stream whose backbone learns.
        ids: how ids of labels become those of a stream; see `train_head.data.links`.

    Raises:
        TrainSettingsError: a cache has no name, or that of the stream whose backbone learns; or ids are given and no
            cache.
        CacheError: it cannot be opened, or those of one stream differ.
    """
    named = by_stream(caches) if caches else {}
    if ids and not named:
        raise TrainSettingsError(
            f"--ids {ids[0]}: it says how ids of labels become those of a cached stream, and there is none; give "
            "--cache NAME=PATH, or leave it out"
        )
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
    return CachedFeatures(named, linked(open_stores(named), read_links(ids)))


def load_cached(
    clips: Mapping[str, Sequence[str]], cached: CachedFeatures, processes: Processes, folder: Path
) -> dict[str, dict[str, Stream]]:
    """Load the rows of the cached streams, by split, which all of them share; a clip may lack a stream.

    Several processes of a machine map one copy of the rows, where each stream has one cache.

    Args:
        clips: by split, their ids.
        cached: the streams.
        processes: that share the work.
        folder: existing, in which the map is made.
    """
    mapped = processes.count > 1 and bool(cached.stores) and all(len(c) == 1 for c in cached.stores.values())
    with _passing_folder(processes, folder) if mapped else contextlib.nullcontext() as shared:
        return gather_streams(cached.stores, clips, shared)


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
