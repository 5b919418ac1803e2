"""A disk that is full, for real and at every step: the writer says so, and what was committed is intact."""

import errno
import os

import pytest
import zarr

from cache import CacheWriteError, CacheWriter

MEGABYTE = 1 << 20


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_full_disk_costs_no_committed_clip_and_is_no_obstacle_once_there_is_room(
    tiny_disk, suffix, make_cache, make_header, make_clip, expected, contents, faults
):
    path, ballast = tiny_disk / f"a{suffix}", tiny_disk / "ballast"
    make_cache(path, "ab")
    ballast.write_bytes(bytes(2 * MEGABYTE))
    large = make_clip("large", frames=3 * MEGABYTE // 8 - 20_000)  # 3 MB of frames, and VAD on top
    with CacheWriter(path, make_header()) as writer:
        writer.add(large)
        with pytest.raises(CacheWriteError, match=r"No space left on device.*committed before is intact; make room"):
            writer.commit()
        faults.count("full disks")
        faults.survived(expected("ab"), contents(path))
        assert "large" not in writer.done
        ballast.unlink()
        writer.add(make_clip("c"))
    make_cache(path, "d")
    assert contents(path) == expected("abcd")


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


async def full_store(*_):
    full()


def fail_from(step, patch):
    """From the n-th write of a commit on, the disk is full; it can still delete."""
    taken, put = [0], zarr.storage.LocalStore.set

    async def counted(store, key, value):
        taken[0] += 1
        if taken[0] >= step:
            full()
        await put(store, key, value)

    patch.setattr(zarr.storage.LocalStore, "set", counted)


@pytest.mark.parametrize("step", [1, 2, 6, 15])
def test_a_disk_that_fills_up_at_any_write_is_reported_and_the_writer_goes_on(
    path, step, make_cache, make_header, make_clip, expected, contents, monkeypatch, faults
):
    make_cache(path, "ab")
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("c"))
        with monkeypatch.context() as patch:
            fail_from(step, patch)
            with pytest.raises(CacheWriteError, match="No space left"):
                writer.commit()
        faults.count("full disks")
        faults.survived(expected("ab"), contents(path))
        for name in "cd":
            writer.add(make_clip(name))
    faults.survived(expected("abcd"), contents(path))


def test_a_failed_commit_gives_its_room_back(path, make_cache, make_header, make_clip, monkeypatch):
    def sizes():
        return {p: p.stat().st_size for p in path.parent.rglob("*") if p.is_file()}

    make_cache(path, "ab")
    before = sizes()
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("c"))
        with monkeypatch.context() as patch:
            fail_from(3, patch)
            with pytest.raises(CacheWriteError):
                writer.commit()
    assert sizes() == before


def test_a_full_disk_while_the_cache_is_made_leaves_room_for_another_try(
    path, make_cache, make_header, expected, contents, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", full_store)
        with pytest.raises(CacheWriteError, match="No space left"):
            CacheWriter(path, make_header())
    make_cache(path, "a")
    assert contents(path) == expected("a")
    assert list(path.parent.iterdir()) == [path]


def test_a_place_without_the_right_to_write_is_reported(path, make_header, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(CacheWriteError, match=r"Permission denied.*mend the permission"):
        CacheWriter(path, make_header())
