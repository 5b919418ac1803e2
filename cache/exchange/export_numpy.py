"""Export to plain NumPy: a folder of `.npz` files, or arrays that are mapped into memory.

`npz`: `<id>.npz` for each clip with `frames` (T, dim), `seconds` (), and `vad` (T, 3) and `vad_pooled` (3,) where the
cache has them; `export.json`.

`npy`: `frames.npy` (total frames, dim [+ 3]) in the storage dtype, each frame followed by its VAD; `offsets.npy`
(clips + 1,) int64, clip i is rows offsets[i]:offsets[i + 1]; `ids.txt`, one id a line in UTF-8; `export.json`.
"""

import contextlib
import errno
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from cache.exchange.export_manifest import MANIFEST, ExportExistsError
from cache.exchange.exporting import ExportError, ExportSummary, Selection
from cache.format import Array, Clip

NAME_BYTES = 255
"""Of one part of a path: NAME_MAX of Linux, macOS and their file systems."""
UNNAMEABLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""What the operating system says where a path cannot be a file, whatever room or right there is."""
SHOWN = 80
"""Characters of an id that is too long that are repeated."""


def write_npz(selection: Selection, folder: Path, summary: ExportSummary) -> None:
    """Write one file per clip, each complete or not there at all; those of an earlier run are kept if they are equal.

    Raises:
        ExportError: an id would leave the folder, is too long for a file name, or needs a folder where a file is.
        ExportExistsError: a file holds other features than its clip.
    """
    store = selection.store
    names = {clip_id: _inside(clip_id) for clip_id in selection.ids}
    _must_lie_side_by_side(names)
    targets = {clip_id: folder / name for clip_id, name in names.items()}
    seconds = dict(zip(store.ids, store.seconds.tolist(), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        _replace(folder / MANIFEST, json.dumps(selection.manifest, indent=2).encode())
    for clip_id, target in targets.items():
        with _named(clip_id, target):
            present = _read(clip_id, target)
        if present is None:
            for clip in selection.clips([clip_id]):
                with _named(clip_id, target):
                    _write(clip, target)
                summary.written += 1
        elif present.checksum() == store.checksum(clip_id) and np.array_equal(
            present.seconds, seconds[clip_id], equal_nan=True
        ):
            summary.present += 1
            selection.count(len(present.frames))
        else:
            raise ExportExistsError(
                f"{target} holds other features than clip {clip_id!r} of {store.path}; export into an empty folder"
            )


def write_npy(selection: Selection, folder: Path, summary: ExportSummary) -> None:
    """Write all frames as one array, part by part, so that memory stays flat.

    Raises:
        ExportError: an id has a line break, and would be two lines of `ids.txt`.
    """
    store, ids = selection.store, selection.ids
    for clip_id in ids:
        if len(clip_id.splitlines()) > 1 or clip_id != clip_id.rstrip("\r\n"):
            raise ExportError(f"clip {clip_id!r} has a line break, and ids.txt has one id a line; export it as npz")
    folder.mkdir(parents=True)
    offsets = store.offsets(ids)
    shape = (int(offsets[-1]), store.header.width)
    header = {"descr": np.lib.format.dtype_to_descr(store.header.dtype), "fortran_order": False, "shape": shape}
    with (folder / "frames.npy").open("wb") as file:
        # Not through a memory map, whose written pages would count as memory of this process.
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in selection.chunks():
            frames, within = store.load(chunk)
            file.write(frames.data)
            for length in np.diff(within).tolist():
                selection.count(length)
    np.save(folder / "offsets.npy", offsets)
    (folder / "ids.txt").write_text("".join(f"{clip_id}\n" for clip_id in ids), encoding="utf-8", newline="\n")
    (folder / MANIFEST).write_text(json.dumps(selection.manifest, indent=2), encoding="utf-8")
    summary.written = len(ids)


def _inside(clip_id: str) -> str:
    """The file of a clip, relative to the folder of the export."""
    if any(part in ("", ".", "..") for part in clip_id.replace("\\", "/").split("/")):
        raise ExportError(f"clip {clip_id!r} would not lie inside the folder of the export; leave it out with --ids")
    longest = max(len(part.encode()) for part in f"{clip_id}.npz".split("/"))
    if longest > NAME_BYTES:
        raise ExportError(
            f"clip {clip_id[:SHOWN]!r}… needs a file name of {longest} bytes, and a file system takes {NAME_BYTES}; "
            "leave it out with --ids, or export --to npy"
        )
    return f"{clip_id}.npz"


def _must_lie_side_by_side(names: Mapping[str, str]) -> None:
    """Refuse an id whose file would be the folder of another's."""
    files = {name: f"clip {clip_id!r}" for clip_id, name in names.items()} | {MANIFEST: "its manifest"}
    for clip_id, name in names.items():
        for parent in PurePosixPath(name).parents:
            if str(parent) in files:
                raise ExportError(
                    f"clip {clip_id!r} needs a folder {parent}, where the export has {files[str(parent)]}; leave one "
                    "of them out with --ids, or export --to npy"
                )


@contextlib.contextmanager
def _named(clip_id: str, target: Path) -> Iterator[None]:
    """Say of which clip it is that no file can be named so here."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNNAMEABLE:
            raise
        shown = f"{clip_id[:SHOWN]!r}" + ("…" if len(clip_id) > SHOWN else "")
        raise ExportError(
            f"clip {shown} cannot have a file of its own in {target.parent}: {error.strerror}; leave it out with "
            "--ids, or export --to npy"
        ) from error


def _write(clip: Clip, target: Path) -> None:
    arrays: dict[str, Array] = {"frames": clip.frames, "seconds": np.array(clip.seconds, np.float64)}
    if clip.vad is not None and clip.vad_pooled is not None:
        arrays |= {"vad": clip.vad, "vad_pooled": clip.vad_pooled}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # allow_pickle, which NumPy 2.0 lacks
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{os.getpid()}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, target)


def _read(clip_id: str, target: Path) -> Clip | None:
    """The clip that an earlier run exported; None where there is none, or where a crash left half of it."""
    try:
        with target.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            vad, pooled = (arrays.get(name) for name in ("vad", "vad_pooled"))
            return Clip(clip_id, arrays["frames"], vad, pooled, float(arrays["seconds"]))
    except (FileNotFoundError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile):
        return None
