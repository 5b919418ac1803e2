"""An HDF5 cache whose file or folder somebody changes, or reads, at the worst moment: no clip is lost in silence."""

import contextlib
import os
import shutil
import stat

import pytest

from cache import CacheFormatError, CacheWriteError, CacheWriter, open_cache
from cache.containers.hdf5_file import Hdf5Container
from cache.maintenance.rewrite import compact
from cache.maintenance.verify import verify
from cache.writer import seal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.fixture
def interfered(path, make_cache, make_header, make_clip):
    def interfered(ids, interfere, more=""):
        """Write clips into a cache that holds some, and let somebody interfere once the first are committed."""
        if ids:
            make_cache(path, ids)
        with CacheWriter(path, make_header()) as writer:
            writer.add(make_clip("x"))
            writer.commit()
            interfere()
            for clip_id in more:
                writer.add(make_clip(clip_id))

    return interfered


@pytest.mark.parametrize("others", ["abc", "fg"])
def test_a_copy_that_is_written_over_the_file_keeps_its_clips(
    path, tmp_path, others, interfered, make_cache, expected, contents
):
    make_cache(tmp_path / "b.h5", others)
    with pytest.raises(CacheWriteError, match=r"another file was put in its place meanwhile; .*a\.h5\.stopped-"):
        interfered("a", lambda: path.write_bytes((tmp_path / "b.h5").read_bytes()))
    assert contents(path) == expected(others)
    (aside,) = tmp_path.glob("a.h5.stopped-*.zarr")
    assert contents(aside) == expected("x")


@pytest.mark.parametrize(("before", "more"), [("", ""), ("a", ""), ("a", "c")])
def test_a_folder_that_is_removed_during_a_run_is_an_error(
    path, before, more, interfered, folder_of, expected, contents
):
    with pytest.raises(CacheWriteError, match=r"1 segments that were committed .* the folder was removed"):
        interfered(before, lambda: shutil.rmtree(folder_of(path)), more)
    if before:
        assert contents(path) == expected(before)


@pytest.mark.parametrize("reads", [lambda path: verify(path).sound, lambda path: not open_cache(path).lost])
def test_a_reader_beside_a_compaction_finds_no_damage(path, reads, make_cache, monkeypatch):
    for clip_id in "abcd":
        make_cache(path, clip_id)
    read = Hdf5Container.read_blocks

    def read_and_compact(container):
        blocks = read(container)
        monkeypatch.setattr(Hdf5Container, "read_blocks", read)
        compact(path)
        return blocks

    monkeypatch.setattr(Hdf5Container, "read_blocks", read_and_compact)
    assert reads(path)


def test_what_a_killed_seal_left_takes_no_room_from_the_next(path, make_cache, beside, expected, contents, monkeypatch):
    make_cache(path, "a")
    left = path.with_name("a.h5.tmp")
    left.write_bytes(bytes(100))
    usage = shutil.disk_usage(path.parent)
    free = lambda _: usage._replace(free=0 if left.exists() else usage.free)  # noqa: E731
    monkeypatch.setattr("cache.containers.hdf5_file.shutil.disk_usage", free)
    make_cache(path, "b")
    assert contents(path) == expected("ab")
    assert beside(path) == []


def test_the_file_keeps_its_permissions(path, make_cache):
    make_cache(path, "a")
    os.chmod(path, 0o660)
    make_cache(path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_folder_that_cannot_be_read_is_named_with_what_to_do(path, make_cache, make_header, make_clip, folder_of):
    make_cache(path, "a")
    with contextlib.suppress(KeyboardInterrupt), CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("b"))
        writer.commit()
        raise KeyboardInterrupt
    (folder_of(path) / "zarr.json").write_bytes(b"")
    for use in (open_cache, seal):
        with pytest.raises(CacheFormatError, match=r"unfinished work on .*a.h5, cannot be read .* remove that folder"):
            use(path)
