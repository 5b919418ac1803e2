"""A split gathered once into a memory map that any number of trainer processes read.

The operating system keeps one copy of a mapped file for all of them. The file is named by its content, so that a second
process, or a second run, finds it instead of gathering again, and a changed cache never finds an old one.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from cache import fingerprint as fp
from cache.format import OPTIONAL, Array
from cache.gather import Loaded
from cache.paths import StrPath
from cache.reader import FeatureCache
from cache.system.disk import crc32c_at, read_at, reserve
from cache.writer import write_errors

CRC_BYTES = 4
MODE = 0o600
"""In /dev/shm, a file is there for every user of the machine."""


def shared_load(store: FeatureCache, ids: Sequence[str], folder: StrPath) -> Loaded:
    """`FeatureCache.load_all` into a read-only memory map; whoever comes first fills it, the others wait and map it.

    The file is `.npy`, followed by those of `times` and `valid` where the cache has them, with the CRC-32C of all
    before as its last four bytes, little-endian. One that does not match it,
    or that belongs to another user, is made anew; checking a gigabyte in memory takes about 0.25 s. Users who share a
    folder have files of their own, which no one else may read or write.

    Args:
        store: the cache.
        ids: clips, in the order in which they are wanted.
        folder: where the file lies, made where missing; /dev/shm keeps it in memory. Remove it when no one needs it.

    Returns:
        The clips, rows as a memory map in the storage dtype.

    Raises:
        UnknownClipError, DamagedCacheError: see `FeatureCache.load_all`.
        CacheWriteError: the folder is full, or may not be written.
    """
    folder = Path(folder)
    offsets = store.offsets(ids)
    shape = (int(offsets[-1]), store.header.width)
    path = folder / f"emi-{_user()}-{_content(store, ids)}.npy"
    arrays = _mapped(path, shape, store.header.dtype)
    if arrays is None:
        with contextlib.ExitStack() as stack:
            with write_errors(str(folder)):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(filelock.FileLock(path.with_suffix(".lock"), mode=MODE))  # which follows no link
            arrays = _mapped(path, shape, store.header.dtype)  # another may have been first
            if arrays is None:
                _fill(store, ids, path, shape)
                arrays = _arrays(path)
    rows, *optional = arrays
    names = [name for name in OPTIONAL if name in store.header.layout]
    return Loaded(rows, offsets, **dict(zip(names, optional, strict=True)))


def _fill(store: FeatureCache, ids: Sequence[str], path: Path, shape: tuple[int, int]) -> None:
    """Gather the clips beside the path, and move them there when they are complete."""
    partial = path.with_suffix(".partial")
    try:
        with write_errors(str(path.parent)):
            partial.unlink(missing_ok=True)  # that of a killed process
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE))
            out = np.lib.format.open_memmap(partial, "w+", store.header.dtype, shape)
            with partial.open("r+b") as file:  # a map on a disk that gets full kills the process
                reserve(file.fileno(), partial.stat().st_size)
        loaded = store.load_all(ids, out=out)
        out.flush()
        with write_errors(str(path.parent)):
            with partial.open("r+b") as file:
                file.seek(0, os.SEEK_END)
                for array in (loaded.times, loaded.valid):
                    if array is not None:
                        np.save(file, array)
                file.flush()
                file.write(_stored_crc32c(file.fileno(), file.tell()))
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _mapped(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> list[Array] | None:
    """Map a file that was filled whole by this user and is still as it was; None where there is none."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != _user() or status.st_size <= CRC_BYTES:
            return None
        with path.open("rb") as file:
            size = status.st_size - CRC_BYTES
            if _stored_crc32c(file.fileno(), size) != read_at(file.fileno(), CRC_BYTES, size):
                return None
        arrays = _arrays(path)
    except (OSError, ValueError):
        return None
    return arrays if (arrays[0].shape, arrays[0].dtype) == (shape, dtype) else None


def _arrays(path: Path) -> list[Array]:
    """Map the rows of a file, and read the arrays behind them."""
    rows = np.load(path, mmap_mode="r")
    arrays = [rows]
    with path.open("rb") as file:
        end = file.seek(-CRC_BYTES, os.SEEK_END)
        file.seek(rows.offset + rows.nbytes)
        while file.tell() < end:
            arrays.append(np.load(file))
    return arrays


def _stored_crc32c(descriptor: int, size: int) -> bytes:
    """Return the CRC-32C of the first bytes of a file, as it is stored behind them."""
    return crc32c_at(descriptor, 0, size).to_bytes(CRC_BYTES, "little")


def _content(store: FeatureCache, ids: Sequence[str]) -> str:
    """Hash of what the file holds: the clips' checksums, in order, and what made them."""
    content = hashlib.sha256(fp.digest(store.fingerprint).encode())
    for clip_id in ids:
        content.update(f"{clip_id}\0{store.checksum(clip_id)}\0".encode())
    return content.hexdigest()[:32]


def _user() -> int:
    """The number of the user whose files may be read; 0, as of every file, on a system without such numbers."""
    return os.geteuid() if hasattr(os, "geteuid") else 0
