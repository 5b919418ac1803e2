"""Export to plain NumPy: a folder of `.npz` files, or arrays that are mapped into memory.

`npz`: `<id>.npz` for each clip with `frames` (T, dim), `seconds` (), and `vad` (T, 3), `vad_pooled` (3,), `times`
(T, 2) and `valid` (T,) where the cache has them; `export.json`.

`npy`: `frames.npy` (total frames, dim [+ 3]) in the storage dtype, each frame followed by its VAD; `offsets.npy`
(clips + 1,) int64, clip i is rows offsets[i]:offsets[i + 1]; `times.npy` (total frames, 2) float32 and `valid.npy`
(total frames,) bool where the cache has them; `ids.txt`, one id a line in UTF-8; `export.json`.
"""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cache.exchange.selection import MANIFEST, UNNAMEABLE, ExportError, ExportExistsError, Selection
from cache.format import NUMBERS, Array, Clip
from cache.system.atomic_file import write_atomically

NAME_BYTES = 255
"""Of one part of a path: NAME_MAX of Linux, macOS and their file systems."""
SHOWN = 80
"""Characters of an id that is too long that are repeated."""


def write_npz(selection: Selection, folder: Path) -> int:
    """Write one file per clip, each complete or not there at all; those of an earlier run are kept if they are equal.

    Returns:
        The number of files that were written.

    Raises:
        ExportError: an id would leave the folder, is too long for a file name, or needs a folder where a file is.
        ExportExistsError: a file holds other features than its clip.
    """
    store = selection.store
    names = _file_names(selection.ids)
    seconds = dict(zip(store.ids, store.seconds.tolist(), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        write_atomically(folder / MANIFEST, json.dumps(selection.manifest, indent=2).encode())
    written = 0
    for clip_id, name in names.items():
        try:
            present = _read(clip_id, folder / name)
            if present is None:
                for clip in selection.clips([clip_id]):
                    _write(clip, folder / name)
                written += 1
            elif present.checksum() == store.checksum(clip_id) and np.array_equal(
                present.seconds, seconds[clip_id], equal_nan=True
            ):
                selection.count(store.header.duration(present))
            else:
                raise ExportExistsError(
                    f"{folder / name} holds other features than clip {clip_id!r} of {store.path}; export into an "
                    "empty folder"
                )
        except OSError as error:
            if error.errno not in UNNAMEABLE:
                raise
            raise ExportError(
                f"clip {clip_id[:SHOWN]!r}{'…' * (len(clip_id) > SHOWN)} cannot have a file of its own in "
                f"{(folder / name).parent}: {error.strerror}; leave it out with --ids, or export --to npy"
            ) from error
    return written


def write_npy(selection: Selection, folder: Path) -> None:
    """Write all frames as one array, part by part, so that memory grows with their times and marks only.

    Raises:
        ExportError: an id has a line break, and would be two lines of `ids.txt`.
    """
    store, ids = selection.store, selection.ids
    for clip_id in ids:
        if clip_id.splitlines() != [clip_id]:
            raise ExportError(f"clip {clip_id!r} has a line break, and ids.txt has one id a line; export it as npz")
    folder.mkdir()
    offsets = store.offsets(ids)
    shape = (int(offsets[-1]), store.header.width)
    header = {"descr": np.lib.format.dtype_to_descr(store.header.dtype), "fortran_order": False, "shape": shape}
    optional: dict[str, list[Array]] = {name: [] for name in store.header.optional}
    with (folder / "frames.npy").open("wb") as file:
        # Not through a memory map, whose written pages would count as memory of this process.
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in selection.chunks():
            loaded = store.load_all(chunk)
            file.write(loaded.rows.data)
            for name, parts in optional.items():
                parts.append(getattr(loaded, name))
            if loaded.times is not None:
                covered = loaded.times[loaded.offsets[1:] - 1, 1]
            else:
                covered = np.diff(loaded.offsets) * (store.hop_seconds or 0.0)
            for seconds in covered.tolist():
                selection.count(seconds)
    np.save(folder / "offsets.npy", offsets)
    for name, parts in optional.items():
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    (folder / "ids.txt").write_text("".join(f"{clip_id}\n" for clip_id in ids), encoding="utf-8", newline="\n")


def _file_names(ids: Sequence[str]) -> dict[str, str]:
    """The file of each clip, relative to the folder of the export; none would be the folder of another's."""
    names = {clip_id: f"{clip_id}.npz" for clip_id in ids}
    files = {name: f"clip {clip_id!r}" for clip_id, name in names.items()} | {MANIFEST: "its manifest"}
    for clip_id, name in names.items():
        if any(part in ("", ".", "..") for part in clip_id.replace("\\", "/").split("/")):
            raise ExportError(
                f"clip {clip_id!r} would not lie inside the folder of the export; leave it out with --ids"
            )
        longest = max(len(part.encode()) for part in name.split("/"))
        if longest > NAME_BYTES:
            raise ExportError(
                f"clip {clip_id[:SHOWN]!r}… needs a file name of {longest} bytes, and a file system takes {NAME_BYTES}"
                "; leave it out with --ids, or export --to npy"
            )
        for parent in map(str, PurePosixPath(name).parents):
            if parent in files:
                raise ExportError(
                    f"clip {clip_id!r} needs a folder {parent}, where the export has {files[parent]}; leave one of "
                    "them out with --ids, or export --to npy"
                )
    return names


def _write(clip: Clip, target: Path) -> None:
    more = {name: array for name in NUMBERS[1:] if (array := getattr(clip, name)) is not None}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            np.savez(file, frames=clip.frames, seconds=np.array(clip.seconds, np.float64), **more)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(clip_id: str, target: Path) -> Clip | None:
    """The clip that an earlier run exported; None where there is none, or where a crash left half of it."""
    try:
        with target.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            numbers = {name: arrays.get(name) for name in NUMBERS[1:]}
            return Clip(clip_id, arrays["frames"], seconds=float(arrays["seconds"]), **numbers)
    except (FileNotFoundError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile):
        return None
