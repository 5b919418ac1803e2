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
from numpy.typing import NDArray

from cache import fingerprint as fp
from cache.format import Array
from cache.paths import StrPath
from cache.reader import FeatureCache
from cache.system.disk import crc32c_at, read_at, reserve
from cache.writer import write_errors

CRC_BYTES = 4
MODE = 0o600
"""In /dev/shm, a file is there for every user of the machine."""


def shared_load(store: FeatureCache, ids: Sequence[str], folder: StrPath) -> tuple[Array, NDArray[np.int64]]:
    """`FeatureCache.load` into a read-only memory map; whoever comes first fills it, the others wait and map it.

    The file is `.npy` with the CRC-32C of all before as its last four bytes, little-endian. One that does not match it,
    or that belongs to another user, is made anew; checking a gigabyte in memory takes about 0.25 s. Users who share a
    folder have files of their own, which no one else may read or write.

    Args:
        store: the cache.
        ids: clips, in the order in which they are wanted.
        folder: where the file lies, made where missing; /dev/shm keeps it in memory. Remove it when no one needs it.

    Returns:
        (total frames, dim [+ 3]) memory map in the storage dtype, and (len(ids) + 1,) int64 offsets.

    Raises:
        UnknownClipError, DamagedCacheError: see `FeatureCache.load`.
        CacheWriteError: the folder is full, or may not be written.
    """
    folder = Path(folder)
    offsets = store.offsets(ids)
    shape = (int(offsets[-1]), store.header.width)
    path = folder / f"emi-{_user()}-{_content(store, ids)}.npy"
    frames = _mapped(path, shape, store.header.dtype)
    if frames is None:
        with contextlib.ExitStack() as stack:
            with write_errors(str(folder)):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(filelock.FileLock(path.with_suffix(".lock"), mode=MODE))  # which follows no link
            frames = _mapped(path, shape, store.header.dtype)  # another may have been first
            if frames is None:
                _fill(store, ids, path, shape)
                frames = np.load(path, mmap_mode="r")
    return frames, offsets


def _fill(store: FeatureCache, ids: Sequence[str], path: Path, shape: tuple[int, int]) -> None:
    """Gather the clips beside the path, and move them there when they are complete."""
    partial = path.with_suffix(".partial")
    try:
        with write_errors(str(path.parent)):
            partial.unlink(missing_ok=True)  # that of a killed process
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE))
            out = np.lib.format.open_memmap(partial, "w+", store.header.dtype, shape)
            size = partial.stat().st_size
            with partial.open("r+b") as file:  # a map on a disk that gets full kills the process
                reserve(file.fileno(), size + CRC_BYTES)
        store.load(ids, out=out)
        out.flush()
        with write_errors(str(path.parent)):
            with partial.open("r+b") as file:
                crc = _stored_crc32c(file.fileno(), size)
                file.seek(size)
                file.write(crc)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _mapped(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array | None:
    """Map a file that was filled whole by this user and is still as it was; None where there is none."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != _user() or status.st_size <= CRC_BYTES:
            return None
        with path.open("rb") as file:
            size = status.st_size - CRC_BYTES
            if _stored_crc32c(file.fileno(), size) != read_at(file.fileno(), CRC_BYTES, size):
                return None
        frames: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return frames if (frames.shape, frames.dtype) == (shape, dtype) else None


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
