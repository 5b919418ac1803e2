"""Reading and writing by position where the system lacks POSIX's calls."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from cache import open_cache
from cache.shared import shared_load
from cache.system import disk

MISSING = ("pread", "preadv", "pwrite", "posix_fallocate", "geteuid")


@pytest.fixture
def windows(monkeypatch):
    """Take away what Windows lacks."""
    for name in MISSING:
        monkeypatch.delattr(os, name)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_cache_is_written_and_read(windows, tmp_path, make_cache, expected, contents, suffix):
    path = make_cache(tmp_path / f"a{suffix}", "abc")
    make_cache(path, "d")
    assert contents(path) == expected("abcd")
    with open_cache(path) as store:
        loaded = shared_load(store, store.ids, tmp_path / "shared")
        assert (loaded.rows == store.load(store.ids)[0]).all()
        assert loaded.offsets[-1] == len(loaded.rows)


def test_threads_that_share_a_descriptor_read_what_they_ask_for(windows, tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    descriptor = disk.open_binary(tmp_path / "file")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda at: disk.read_at(descriptor, 1, at), range(2000)))
    os.close(descriptor)
    assert read == [bytes([at % 256]) for at in range(2000)]


def test_room_is_reserved_by_writing(windows, tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"head")
        file.flush()
        disk.reserve(file.fileno(), (2 << 20) + 5)
    assert (tmp_path / "file").read_bytes() == b"head" + bytes((2 << 20) + 1)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 2 << 20


def test_a_folder_is_not_flushed_where_that_is_not_possible(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    (tmp_path / "file").touch()
    monkeypatch.setattr(disk.os, "name", "nt")
    disk.sync(tmp_path)
    assert flushed == []
    disk.sync(tmp_path / "file")
    assert len(flushed) == 1
