"""Two writers at once: with Zarr both win, with HDF5 the second is told to wait."""

import os
import signal
import time

import pytest

from cache import CacheError, CacheLockedError, CacheWriter, StaleCacheError, open_cache
from cache.containers.by_suffix import open_container
from cache.maintenance.rewrite import compact


@pytest.fixture
def write(make_header, make_clip):
    def write(path, clip_ids, ready, go):
        """Open a writer, say so, wait for the word, and commit clip by clip."""
        with CacheWriter(path, make_header()) as writer:
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            for clip_id in clip_ids:
                writer.add(make_clip(clip_id))
                writer.commit()

    return write


def test_two_processes_fill_one_zarr_cache(tmp_path, write, fork, exit_code, expected, contents):
    path, ready, go = tmp_path / "a.zarr", os.pipe(), os.pipe()
    children = [fork(write, path, clip_ids, ready, go) for clip_ids in ("abc", "xyz")]
    os.close(ready[1])
    assert [os.read(ready[0], 1) for _ in children] == [b"r", b"r"]
    os.write(go[1], b"gg")
    assert [exit_code(child) for child in children] == [0, 0]
    found = contents(path)
    assert found == expected("abcxyz")
    assert [i for i in found if i in "abc"] == list("abc")
    assert [i for i in found if i in "xyz"] == list("xyz")


def test_a_second_hdf5_writer_is_refused_until_the_first_is_gone(
    tmp_path, write, fork, exit_code, make_cache, make_header, contents
):
    path, ready, go = tmp_path / "a.h5", os.pipe(), os.pipe()
    first = fork(write, path, "ab", ready, go)
    os.close(ready[1])
    assert os.read(ready[0], 1) == b"r"
    with pytest.raises(CacheLockedError, match=r"being written by another process.*\.zarr cache"):
        CacheWriter(path, make_header())
    assert list(contents(path)) == []
    os.write(go[1], b"g")
    assert exit_code(first) == 0
    make_cache(path, "c")
    assert "".join(contents(path)) == "abc"


def test_a_killed_hdf5_writer_leaves_no_lock(tmp_path, write, fork, exit_code, make_cache, contents):
    path, ready, go = tmp_path / "a.h5", os.pipe(), os.pipe()
    first = fork(write, path, "a", ready, go)
    os.close(ready[1])
    assert os.read(ready[0], 1) == b"r"
    os.kill(first, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    make_cache(path, "b")
    assert "".join(contents(path)) == "b"


def test_two_hdf5_writers_in_one_process_exclude_each_other_too(tmp_path, make_header, make_clip, expected, contents):
    path = tmp_path / "a.h5"
    with CacheWriter(path, make_header()) as writer:
        with pytest.raises(CacheLockedError):
            CacheWriter(path, make_header())
        writer.add(make_clip("a"))
    assert contents(path) == expected("a")


def test_a_clip_that_two_zarr_writers_made_counts_once(tmp_path, make_header, make_clip, expected, contents):
    path = tmp_path / "a.zarr"
    with CacheWriter(path, make_header()) as one, CacheWriter(path, make_header()) as other:
        for writer, ids in ((one, "abc"), (other, "cbd")):
            for name in ids:
                writer.add(make_clip(name))
            writer.commit()
    assert contents(path) == expected("abcd")
    with open_cache(path) as store:
        assert (len(store), list(store), len(store.segments)) == (4, list("abcd"), 2)
        assert store.load("dcba")[0].shape[0] == store.num_frames.sum()
    with CacheWriter(path, make_header()) as writer, pytest.raises(CacheError, match="already in"):
        writer.add(make_clip("c"))


def test_two_zarr_writers_with_other_settings_never_mix(
    tmp_path, make_header, make_clip, expected, contents, monkeypatch
):
    """Both find nothing and make the cache; the one whose header lost is refused before it writes a clip."""
    from cache.containers.zarr_group import ZarrContainer

    path, create = tmp_path / "a.zarr", ZarrContainer.create

    def create_late(container, attributes, extras):
        monkeypatch.undo()
        with CacheWriter(path, make_header()) as writer:
            writer.add(make_clip("a"))
        create(container, attributes, extras)

    monkeypatch.setattr(ZarrContainer, "create", create_late)
    with pytest.raises(StaleCacheError):
        CacheWriter(path, make_header(layer=9))
    assert contents(path) == expected("a")


def test_a_zarr_cache_that_appears_between_two_looks_is_taken_for_what_it_is(
    tmp_path, make_cache, expected, contents, monkeypatch
):
    from cache.containers import zarr_group as zarr_container

    path, look = tmp_path / "a.zarr", zarr_container._left_by_create

    def look_late(folder):
        monkeypatch.undo()
        make_cache(path, "a")
        return look(folder)

    path.mkdir()
    monkeypatch.setattr(zarr_container, "_left_by_create", look_late)
    make_cache(path, "b")
    assert contents(path) == expected("ab")


def test_a_child_that_outlives_the_writer_does_not_keep_its_lock(path, make_header, make_clip):
    writer = CacheWriter(path, make_header())
    writer.add(make_clip("a"))
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        with writer:
            pass
        with CacheWriter(path, make_header()) as again:
            again.add(make_clip("b"))
        compact(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_that_forgets_the_writer_does_not_open_its_lock(path, make_header, make_clip):
    writer = CacheWriter(path, make_header())
    writer.add(make_clip("a"))
    child = os.fork()
    if not child:
        writer._container.close()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(Exception, match="by another process"):
        open_container(path).lock(alone=True)
    with writer:
        pass
