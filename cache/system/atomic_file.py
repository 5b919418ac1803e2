"""Write a file whole or not at all: beside its place, flushed, then renamed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cache.system.disk import sync


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file; after a crash there is the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which then takes its place; it is removed where writing fails."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush a file and rename it; after a crash there is the old file or the new one."""
    sync(temporary)
    temporary.replace(path)
