"""An HDF5 cache is written into a hidden folder, sealed into one file, and read from both."""

import os
import shutil
import signal
import struct
from collections import namedtuple
from dataclasses import replace

import h5py
import numpy as np
import pytest

from cache import CacheFormatError, CacheWriteError, CacheWriter, DamagedCacheError, open_cache
from cache.containers import hdf5_file
from cache.containers.by_suffix import open_container
from cache.containers.hdf5_file import Hdf5Container
from cache.containers.zarr_group import ZarrContainer
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify
from cache.writer import seal

NO_SIZE = b"GCOL\x01\0\0\0" + struct.pack("<Q", 4096) + bytes(4080)
"""A heap of strings whose first object has no size, over which HDF5 would loop for ever."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.fixture
def stopped(make_header, make_clip):
    def stopped(path, ids):
        """Commit a segment for each clip in a run that Ctrl-C stops."""

        def run():
            with CacheWriter(path, make_header()) as writer:
                for clip_id in ids:
                    writer.add(make_clip(clip_id))
                    writer.commit()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run()

    return stopped


@pytest.fixture
def not_sealed(make_cache, fork, exit_code):
    def not_sealed(path, ids):
        """A run that is killed between the renaming of the file and the removal of its folder."""

        def run():
            hdf5_file.sync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            make_cache(path, ids)

        assert exit_code(fork(run)) == -signal.SIGKILL

    return not_sealed


def test_stopped_work_is_read_and_resumed_and_the_file_is_made_at_the_end(
    path, stopped, make_cache, folder_of, beside, expected, contents, plainly
):
    stopped(path, "ab")
    assert [p.name for p in path.parent.iterdir()] == [".a.h5.zarr"]
    assert contents(path) == contents(folder_of(path)) == expected("ab")
    make_cache(path, "c")
    assert contents(path) == plainly(path) == expected("abc")
    assert beside(path) == []
    stopped(path, "de")
    assert plainly(path) == expected("abc")
    assert list(contents(path).items()) == list(expected("abcde").items())
    make_cache(path, "f")
    assert list(contents(path).items()) == list(plainly(path).items()) == list(expected("abcdef").items())
    assert beside(path) == []


def test_a_run_with_nothing_left_to_do_seals_what_was_stopped_before(path, stopped, beside, expected, plainly):
    stopped(path, "ab")
    seal(path)
    assert plainly(path) == expected("ab")
    before = path.stat()
    seal(path)
    assert path.stat().st_ino == before.st_ino
    assert beside(path) == []


def test_a_writer_without_new_clips_leaves_the_file_alone(path, make_cache):
    make_cache(path, "ab")
    before = path.stat()
    make_cache(path, "")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_folder_that_was_not_removed_after_sealing_counts_no_clip_twice(
    path, not_sealed, make_cache, folder_of, beside, expected, contents
):
    for before, ids in (("", "ab"), ("ab", "cd")):
        not_sealed(path, ids)
        assert folder_of(path).exists()
        with open_cache(path) as store:
            assert list(store) == list(before + ids)
            assert len(store.segments) == len(before + ids) // 2
        assert contents(path) == expected(before + ids)
        assert verify(path).sound
        assert verify(path).leftovers[0] == 1
    make_cache(path, "e")
    assert contents(path) == expected("abcde")
    assert beside(path) == []


@pytest.mark.parametrize("step", ["compact", "repair", "derive from"])
def test_maintenance_works_on_the_file_and_the_folder_together(
    path, step, stopped, make_cache, spoil, beside, expected, contents, plainly
):
    make_cache(path, "ab")
    stopped(path, "cd")
    assert (verify(path).clips, verify(path).sound) == (4, True)
    assert open_container(path).stored()[0] > 20
    if step == "compact":
        assert compact(path).segments == (3, 1)
    elif step == "repair":
        assert not repair(path).changed
        spoil(path, "c")
        assert [clip.id for clip in verify(path).damaged] == ["c"]
        assert [clip.id for clip in repair(path).dropped] == ["c"]
    else:
        transfer([path], path.with_stem("b"))
        assert plainly(path.with_stem("b")) == expected("abcd")
        return
    ids = "abd" if step == "repair" else "abcd"
    assert list(contents(path).items()) == list(plainly(path).items()) == list(expected(ids).items())
    assert beside(path) == []


def test_compact_seals_a_single_segment_of_stopped_work(path, stopped, beside, expected, plainly):
    stopped(path, "a")
    assert compact(path).changed
    assert plainly(path) == expected("a")
    assert beside(path) == []
    assert not compact(path).changed


def restored(path, make_cache):
    """A copy from before is put in the place of the file."""
    shutil.copyfile(path.with_stem("copy"), path)
    return "ab"


def replaced(path, make_cache):
    make_cache(path.with_stem("other"), "uvwxy").replace(path)
    return "uvwxy"


def deleted(path, make_cache):
    path.unlink()
    return ""


@pytest.mark.parametrize("change", [restored, replaced, deleted])
def test_stopped_work_on_another_file_is_no_part_of_a_cache_and_is_kept_as_one(
    path, change, stopped, make_cache, beside, expected, contents
):
    make_cache(path, "ab")
    shutil.copyfile(path, path.with_stem("copy"))
    make_cache(path, "c")
    stopped(path, "de")
    assert contents(path) == expected("abcde")
    ids = change(path, make_cache)
    if ids:
        assert contents(path) == expected(ids)
        assert verify(path).sound
    with pytest.warns(UserWarning, match=r"continue another file .* put aside as .*a\.h5\.stopped-"):
        make_cache(path, "z")
    assert contents(path) == expected(f"{ids}z")
    (kept,) = beside(path)
    assert kept.name.startswith("a.h5.stopped-")
    assert contents(kept) == expected("de")


def test_stopped_work_continues_a_copy_of_its_file(path, stopped, make_cache, expected, contents):
    make_cache(path, "ab")
    shutil.copyfile(path, path.with_stem("copy"))
    stopped(path, "c")
    path.with_stem("copy").replace(path)
    assert contents(path) == expected("abc")


def test_damaged_work_is_not_sealed(path, stopped, make_cache, folder_of, expected, contents, plainly, flipped):
    make_cache(path, "ab")
    stopped(path, "cd")
    (shard, *_) = sorted(folder_of(path).glob("segments/*/frames/c/0/0"))
    shard.write_bytes(flipped(shard.read_bytes(), 0))
    with pytest.raises(DamagedCacheError, match=r"was not written, .* clip 'c': the bytes do not match .* repair"):
        make_cache(path, "e")
    assert plainly(path) == expected("ab")
    repair(path)
    assert contents(path) == plainly(path) == expected("abde")


def test_a_file_that_vanishes_under_its_writer_costs_no_committed_clip(
    path, make_cache, make_header, make_clip, expected, contents, beside
):
    make_cache(path, "ab")
    writer = CacheWriter(path, make_header())
    writer.add(make_clip("c"))
    writer.commit()
    path.unlink()
    with pytest.raises(CacheWriteError, match=r"what was committed is in .*stopped"):
        writer.__exit__(None, None, None)
    (kept,) = beside(path)
    assert contents(kept) == expected("c")


def test_a_reader_reads_on_while_its_clips_are_sealed(path, stopped, make_cache, expected, record):
    stopped(path, "ab")
    with open_cache(path) as store:
        make_cache(path, "c")
        assert {i: record(store[i]) for i in store} == expected("ab")
        assert store.load("ba")[1][-1] == store.num_frames.sum()
    make_cache(path, "d")
    with open_cache(path) as store:
        stopped(path, "e")
        assert {i: record(store[i]) for i in store} == expected("abcd")


@pytest.mark.parametrize("method", ["read_attributes", "segment_names", "read_segment", "read_blocks", "read_into"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("base", ["", "ab"])
def test_a_cache_that_is_sealed_while_it_is_opened_is_whole(
    path, method, before, base, stopped, make_cache, expected, contents, monkeypatch
):
    if base:
        make_cache(path, base)
    stopped(path, "cd")
    shutil.rmtree(path.with_name(".a.h5.zarr") / "index")
    real = getattr(ZarrContainer, method)

    def sealed(*arguments):
        monkeypatch.undo()
        if before:
            make_cache(path, "")
        try:
            return real(*arguments)
        finally:
            if not before:
                make_cache(path, "")

    monkeypatch.setattr(ZarrContainer, method, sealed)
    assert contents(path) == expected(f"{base}cd")
    assert path.exists()


def test_a_second_starter_keeps_what_the_first_committed(path, make_header, stopped, expected, contents):
    second = Hdf5Container(str(path))
    assert second.read_attributes() is None
    stopped(path, "a")
    second.create(make_header().to_attributes(), {})
    second.close()
    assert contents(path) == expected("a")


def test_too_little_room_is_said_before_sealing_and_nothing_is_lost(
    path, stopped, make_cache, make_header, make_clip, expected, contents, plainly, monkeypatch, faults
):
    make_cache(path, "ab")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
        with pytest.raises(CacheWriteError, match=r"0\.0 MB are free.*committed before is intact; make room"):
            make_cache(path, "c")
    faults.count("full disks")
    faults.survived(expected("abc"), contents(path))
    assert plainly(path) == expected("ab")
    seal(path)
    assert plainly(path) == expected("abc")


@pytest.mark.parametrize("call", [(h5py.Group, "copy"), (h5py.Dataset, "__setitem__"), (os, "replace")])
def test_a_disk_that_fails_while_sealing_costs_nothing(
    path, call, stopped, make_cache, beside, expected, contents, plainly, monkeypatch, faults
):
    def failing(*_, **__):
        raise OSError(5, "Input/output error")

    make_cache(path, "ab")
    stopped(path, "c")
    with monkeypatch.context() as patch:
        patch.setattr(*call, failing)
        with pytest.raises(CacheWriteError, match="Input/output error"):
            seal(path)
    faults.count("full disks")
    faults.survived(expected("abc"), contents(path))
    assert [p.name for p in beside(path)] == [".a.h5.zarr"]
    seal(path)
    assert plainly(path) == expected("abc")


def test_a_file_is_flushed_before_it_takes_its_name_and_its_folder_goes_last(
    path, make_header, make_clip, folder_of, monkeypatch
):
    steps = []
    monkeypatch.setattr("cache.writer.SEGMENTS_PER_BLOCK", 1)  # so that no block is left to write in the end
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(("flush", os.readlink(f"/proc/self/fd/{fd}"))))
    for name in ("replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, name=name, real=real: (steps.append((name, str(a))), real(a, b))[1])
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("a"))
        writer.commit()
        steps.clear()
    temporary = f"{path}.tmp"
    wanted = [("flush", temporary), ("replace", temporary), ("flush", str(path.parent))]
    assert steps == [*wanted, ("rename", str(folder_of(path)))]


def test_what_a_block_knows_of_a_damaged_index_outlives_a_seal(path, make_cache, expected, contents):
    make_cache(path, "ab")
    with h5py.File(path, "r+") as file:
        (segment,) = file["segments"].values()
        segment["checksums"][0] ^= 1
    for more in ("c", "d"):
        make_cache(path, more)
    assert contents(path) == expected("abcd")
    assert [(clip.id, clip.lost) for clip in verify(path).damaged] == [("a", False), ("b", False)]
    assert repair(path).dropped == []
    assert verify(path).sound


def test_a_segment_of_stopped_work_that_vanished_is_not_forgotten(
    path, stopped, folder_of, make_cache, expected, contents
):
    stopped(path, "ab")
    lost = min(p for p in folder_of(path).glob("segments/0*"))
    shutil.rmtree(lost)
    assert [(clip.id, clip.lost) for clip in verify(path).damaged] == [("a", True)]
    with pytest.raises(DamagedCacheError, match=f"segment {lost.name} is gone.*emi cache repair"):
        make_cache(path, "c")
    assert [clip.id for clip in repair(path).dropped] == ["a"]
    assert contents(path) == expected("bc")


def test_a_link_to_a_cache_is_as_good_as_the_cache(tmp_path, make_cache, stopped, expected, contents):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    path, link = tmp_path / "there" / "a.h5", tmp_path / "here" / "b.h5"
    link.symlink_to("../there/a.h5")
    make_cache(link, "ab")
    assert contents(path) == expected("ab")
    stopped(path, "c")
    assert contents(link) == expected("abc")
    make_cache(link, "d")
    assert contents(path) == contents(link) == expected("abcd")
    compact(link)
    assert link.is_symlink()
    assert contents(path) == expected("abcd")
    assert sorted(p.name for p in tmp_path.glob("*/*")) == ["a.h5", "b.h5"]


def test_any_id_is_read_back(path, make_cache, make_header, expected, contents):
    """The first one begins as a heap of strings of HDF5 does."""
    ids, header = ["GCOLxxxx0", "z" * 60, "GCOL\x01"], make_header(vad=False)
    make_cache(path, ids, per_segment=3, header=header)
    assert contents(path) == expected(ids, header)
    assert verify(path).sound


def test_numbers_that_look_like_a_damaged_heap_of_strings_are_read_back_and_copied(
    path, make_header, make_clip, record
):
    header = make_header()
    numbers = np.frombuffer(NO_SIZE, np.int64)
    frames = np.frombuffer(NO_SIZE, np.float16).reshape(-1, 4)
    clip = replace(make_clip("a", frames=len(frames)), frames=frames)
    assert clip.frames.tobytes() == NO_SIZE
    with CacheWriter(path, header, {"numbers": numbers}) as writer:
        writer.add(clip)
    open_container(path).rewrite([])
    with open_cache(path) as store:
        assert store.extras["numbers"].tobytes() == NO_SIZE
        assert record(store["a"]) == record(clip)
    assert verify(path).sound


@pytest.mark.parametrize("url", ["memory://x.h5", "s3://bucket/x.hdf5"])
def test_a_url_of_an_hdf5_cache_is_refused(tmp_path, monkeypatch, url, make_cache):
    monkeypatch.chdir(tmp_path)
    source = make_cache(tmp_path / "a.zarr", "ab")
    with pytest.raises(CacheFormatError, match=r"HDF5 caches are local files.*\.zarr"):
        transfer([source], url)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_the_container_itself_takes_no_file_url(tmp_path):
    with pytest.raises(CacheFormatError, match="local files"):
        Hdf5Container(f"file://{tmp_path}/a.h5")
