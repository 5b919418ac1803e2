"""Locks between processes: who holds one is named, and dead processes hold none."""

import errno
import os
import signal

import filelock
import pytest

from cache import CacheLockedError, CacheWriter
from cache.maintenance.rewrite import compact
from cache.system.locks import ALONE, FolderLock, HeldError, Lock


@pytest.fixture
def held(fork):
    """Let a child process take a lock and keep it; returns its number."""

    def hold(take):
        ready = os.pipe()

        def work():
            kept = take()
            os.write(ready[1], b"r")
            signal.pause()
            del kept

        child = fork(work)
        os.close(ready[1])
        assert os.read(ready[0], 1) == b"r"
        os.close(ready[0])
        return child

    return hold


def alone(folder):
    lock = FolderLock(folder)
    lock.take(alone=True)
    return lock


def locked(path):
    lock = Lock(path)
    lock.take()
    return lock


def kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_who_holds_a_file_is_named_until_it_dies(tmp_path, held):
    (tmp_path / "file").touch()
    child = held(lambda: locked(tmp_path / "file"))
    with pytest.raises(HeldError, match=rf"^ \({child}: .*python"):
        locked(tmp_path / "file")
    kill(child)
    locked(tmp_path / "file").release()


def test_a_folder_is_held_by_many_or_by_one_alone(tmp_path, held):
    folder = tmp_path / "folder"
    folder.mkdir()
    one, other = FolderLock(folder), FolderLock(folder)
    one.take(alone=False)
    other.take(alone=False)
    with pytest.raises(HeldError):
        alone(folder)
    one.release()
    with pytest.raises(HeldError):
        alone(folder)
    other.release()
    assert list(tmp_path.iterdir()) == [folder]
    child = held(lambda: alone(folder))
    with pytest.raises(HeldError, match=rf"^ \({child}: "):
        FolderLock(folder).take(alone=False)
    kill(child)
    assert [path.name.endswith(ALONE) for path in tmp_path.iterdir() if path != folder] == [True]  # which nobody holds
    alone(folder).release()
    assert list(tmp_path.iterdir()) == [folder]


def test_where_the_folder_beside_cannot_be_written_the_folder_itself_holds_the_locks(tmp_path, monkeypatch):
    folder, make = tmp_path / "folder", filelock.FileLock

    def make_inside(path, **options):
        if path.parent == tmp_path:
            raise PermissionError(path)
        return make(path, **options)

    folder.mkdir()
    beside = FolderLock(folder)
    beside.take(alone=False)
    beside.release()
    monkeypatch.setattr(filelock, "FileLock", make_inside)
    kept = FolderLock(folder)
    kept.take(alone=False)
    assert [path.parent for path in tmp_path.rglob("*.lock")] == [folder]
    monkeypatch.undo()
    with pytest.raises(HeldError):
        alone(folder)
    kept.release()


def test_of_two_that_come_at_once_never_both_are_let_in(tmp_path, fork, exit_code):
    start = tmp_path / "start"

    def race(seed):
        while not start.exists():
            pass
        for turn in range(15):
            lock = FolderLock(tmp_path / "cache")
            try:
                lock.take(alone=bool((turn + seed) % 2))
            except HeldError:
                continue
            mine = tmp_path / f"in-{seed}-{'alone' if (turn + seed) % 2 else 'shared'}"
            mine.touch()
            inside = {path.name for path in tmp_path.glob("in-*")} - {mine.name}
            mine.unlink()
            lock.release()
            if (turn + seed) % 2:
                assert not inside
            else:
                assert not any(name.endswith("alone") for name in inside)

    (tmp_path / "cache").mkdir()
    children = [fork(race, seed) for seed in range(3)]
    start.touch()
    assert [exit_code(child) for child in children] == [0, 0, 0]


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_cache_says_who_writes_it_and_a_compaction_waits(tmp_path, held, make_cache, make_header, suffix):
    path = make_cache(tmp_path / f"a{suffix}", "ab")
    child = held(lambda: CacheWriter(path, make_header()))
    with pytest.raises(CacheLockedError, match=rf"being written by another process \({child}: .*wait for it"):
        compact(path)
    kill(child)
    compact(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_flock_a_file_beside_is_locked(tmp_path, monkeypatch):
    """As on Windows, where nobody could read a locked file."""
    monkeypatch.setattr(filelock, "has_fcntl", False)
    (tmp_path / "file").write_text("read me")
    with Lock(tmp_path / "file"):
        assert (tmp_path / "file").read_text() == "read me"
        with pytest.raises(HeldError):
            locked(tmp_path / "file")
    locked(tmp_path / "file").release()
    with Lock(tmp_path), pytest.raises(HeldError):
        locked(tmp_path)
    with pytest.raises(FileNotFoundError):
        locked(tmp_path / "nothing")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_lets_everyone_in(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    (tmp_path / "file").touch()
    kept = locked(tmp_path / "file")
    locked(tmp_path / "file").release()
    kept.release()
    monkeypatch.setattr(filelock, "FileLock", refuse)
    assert alone(tmp_path) is not None


def test_a_file_that_is_replaced_while_one_waits_for_it_is_locked_as_it_is_then(tmp_path, monkeypatch):
    path, take = tmp_path / "file", filelock.lock_descriptor
    path.write_text("old")

    def replace_first(descriptor, **options):
        if path.read_text() == "old":
            (tmp_path / "new").write_text("new")
            (tmp_path / "new").replace(path)
        return take(descriptor, **options)

    monkeypatch.setattr(filelock, "lock_descriptor", replace_first)
    kept = locked(path)
    with pytest.raises(HeldError):
        locked(path)
    kept.release()


def test_a_dead_lock_file_of_another_user_is_in_nobodys_way(tmp_path, monkeypatch):
    """It cannot be opened for writing, nor removed; that nobody holds it can be seen all the same."""
    folder = tmp_path / "f.zarr"
    folder.mkdir()
    (tmp_path / f".f.zarr.1-dead{ALONE}").touch()

    def denied(lock, *args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    FolderLock(folder).take(alone=False)  # nor can this one keep a file of its own then
    held = os.open(tmp_path / f".f.zarr.1-dead{ALONE}", os.O_RDWR)
    try:
        assert filelock.lock_descriptor(held, blocking=False)
        with pytest.raises(HeldError):
            FolderLock(folder).take(alone=False)
    finally:
        os.close(held)
