"""A split gathered once into a memory map that any number of trainer processes read.

The operating system keeps one copy of a mapped file for all of them. The file is named by its content, so that a second
process, or a second run, finds it instead of gathering again, and a changed cache never finds an old one.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import fingerprint as fp
from cache.container import StrPath
from cache.format import Array
from cache.reader import FeatureCache
from cache.writer import write_errors


def shared_load(store: FeatureCache, ids: Sequence[str], folder: StrPath) -> tuple[Array, NDArray[np.int64]]:
    """`FeatureCache.load` into a read-only memory map; whoever comes first fills it, the others wait and map it.

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
    folder.mkdir(parents=True, exist_ok=True)
    offsets = store.offsets(ids)
    path = folder / f"{_content(store, ids)}.npy"
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            partial = path.with_suffix(".partial")  # that of a killed process is written over
            shape = (int(offsets[-1]), store.dim + len(store.vad_names))
            try:
                with write_errors(str(folder)):
                    out = np.lib.format.open_memmap(partial, "w+", store.header.dtype, shape)
                    with partial.open("r+b") as file:  # a map on a disk that gets full kills the process
                        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
                store.load(ids, out=out)
                out.flush()
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r"), offsets


def _content(store: FeatureCache, ids: Sequence[str]) -> str:
    """Hash of what the file holds: the clips' checksums, in order, and what made them."""
    content = hashlib.sha256(fp.digest(store.fingerprint).encode())
    for clip_id in ids:
        content.update(f"{clip_id}\0{store.checksum(clip_id)}\0".encode())
    return content.hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
