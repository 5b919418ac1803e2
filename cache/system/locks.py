"""Locks between processes, by `filelock`: the operating system drops them when their process dies."""

import contextlib
import errno
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems without locks answer. There everyone is let in, as docs/cache.md says."""
_LOOK_SECONDS = 0.005
_LOOKS_OF_FIRST, _LOOKS_OF_OTHERS = 40, 3
"""Of two that want a folder at the same time, the one that came first is the more patient, and gets it."""
ALONE, TOGETHER = ".alone.lock", ".writer.lock"
"""How the names of the files end that the holders of a `FolderLock` keep."""


class HeldError(BlockingIOError):
    """Another holds the lock; says which process, where the system tells: " (1234: python -m emi extract …)" or ""."""


class _Held:
    """A lock that is released when the object is dropped, if not before."""

    _let_go: Callable[[], object] | None = None

    def release(self) -> None:
        """Release the lock, where this object holds it."""
        if self._let_go is not None:
            self._let_go()
        self._let_go = None


class Lock(_Held):
    """An exclusive lock of a file or folder that exists.

    With `flock` the file itself is locked. Elsewhere, as on Windows, where a locked file cannot be
    read, a file beside it is locked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def take(self, *, wait: bool = False) -> None:
        """Lock; nothing happens where this object holds the lock already.

        Raises:
            HeldError: another holds it, and `wait` is false.
            OSError: there is no such file.
        """
        if self._let_go is None:
            take = _lock_itself if filelock.has_fcntl else _lock_beside
            self._let_go = weakref.finalize(self, take(self._path, wait))  # also where nobody releases it

    def __enter__(self) -> "Lock":
        self.take(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FolderLock(_Held):
    """A lock of a folder that any number of processes hold together, or one holds alone.

    Each holder keeps a file of its own locked, beside the folder or, where it may not write there, in it; and then
    looks for those of others. So two that come at the same time may both be refused, but are never both let in. A file
    whose process died is not locked: whoever sees it removes it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        place = Path(os.path.realpath(folder))
        self._places, self._prefix = (place.parent, place), f".{place.name}."

    def take(self, *, alone: bool) -> None:
        """Join the others, or have the folder alone.

        Raises:
            HeldError: another has it alone, or is there.
        """
        if before := self._in_the_way(alone):  # mostly so, and nothing is written then
            raise HeldError(holder(before))
        made = self._make_own(self._places[0], alone) or self._make_own(self._places[1], alone)
        if made is None:
            return
        own, lock = made
        self._let_go = weakref.finalize(self, _remove, own, lock, os.getpid())
        if in_the_way := self._in_the_way(alone, own):
            by = holder(in_the_way)
            self.release()
            raise HeldError(by)

    def _in_the_way(self, alone: bool, own: Path | None = None) -> Path | None:
        """A file that another holds, seen several times: whoever looks whether a process is alive holds it shortly."""
        kinds = (ALONE, TOGETHER) if alone else ALONE
        for look in range(_LOOKS_OF_FIRST):
            living = [path for path in self._files() if path != own and not _removed(path)]
            held = sorted((path for path in living if path.name.endswith(kinds)), key=lambda path: path.name)
            if not held:
                return None
            if look >= _LOOKS_OF_OTHERS and (own is None or held[0].name < own.name):
                break
            time.sleep(_LOOK_SECONDS)
        return held[0]

    def _files(self) -> Iterator[Path]:
        for place in self._places:
            with contextlib.suppress(OSError):
                yield from (
                    Path(f)
                    for f in os.scandir(place)
                    if f.name.startswith(self._prefix) and f.name.endswith((ALONE, TOGETHER))
                )

    def _make_own(self, place: Path, alone: bool) -> tuple[Path, filelock.BaseFileLock] | None:
        """A new file, locked; None where there are no locks, no right to write, or no room for a file."""
        while True:
            name = f"{self._prefix}{time.time_ns():020d}-{secrets.token_hex(4)}{ALONE if alone else TOGETHER}"
            try:
                lock = filelock.FileLock(place / name, thread_local=False)
                lock.acquire(timeout=0)
            except filelock.Timeout:  # someone looks whether its process is alive, and will remove it
                continue
            except OSError:
                return None
            return place / name, lock


def holder(path: str | os.PathLike[str]) -> str:
    """Return who locks a file, as " (1234: command)", or "" where the system does not tell."""
    try:
        locks, status = Path("/proc/locks").read_text(), os.stat(path)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        process = next(line.split()[4] for line in locks.splitlines() if line.split()[5:6] == [place])
        command = Path("/proc", process, "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except (OSError, StopIteration, AttributeError):
        return ""
    return f" ({process}: {command[:80]})"


def _lock_itself(path: Path, wait: bool) -> Callable[[], None]:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR)  # NFS locks only what is open for writing
        except OSError:
            descriptor = os.open(path, os.O_RDONLY)  # a folder, or no right to write
        try:
            if not _locked(descriptor, wait):
                raise HeldError(holder(path))
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was replaced before it was locked
    owner = os.getpid()

    def let_go() -> None:
        """Unlock what a child that was forked meanwhile holds too; the child itself only closes its copy."""
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                filelock.unlock_descriptor(descriptor)
        os.close(descriptor)

    return let_go


def _locked(descriptor: int, wait: bool) -> bool:
    try:
        return filelock.lock_descriptor(descriptor, blocking=wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True


def _lock_beside(path: Path, wait: bool) -> Callable[[], None]:
    path.stat()  # a lock of nothing is refused here too
    lock = filelock.FileLock(path / ".lock" if path.is_dir() else f"{path}.lock", thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise HeldError("") from None
    return lock.release


def _removed(path: Path) -> bool:
    """Return whether the holder of a file is gone, and remove such a file."""
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    except OSError:
        return not path.exists() or _unheld(path)
    _remove(path, lock, os.getpid())
    return True


def _unheld(path: Path) -> bool:
    """Return whether nobody holds a file that this user may only read: it is another user's, whose process died."""
    try:
        _lock_itself(path, False)()
    except OSError:
        return False
    return filelock.has_fcntl


def _remove(path: Path, lock: filelock.BaseFileLock, owner: int) -> None:
    """Unlock and remove a file, but for a child that was forked meanwhile, whose copy filelock has closed."""
    if os.getpid() == owner:
        lock.release()
        path.unlink(missing_ok=True)
