"""What a hostile review found in the HDF5 container: journals that outlive their file, links, ids, URLs."""

import os
import random
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache import CacheFormatError, CacheWriteError, CacheWriter, open_cache
from cache.containers import hdf5_file as hdf5_container
from cache.containers import journal
from cache.containers.container import open_container
from cache.containers.hdf5_file import Hdf5Container
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify

NO_SIZE = b"GCOL\x01\0\0\0" + struct.pack("<Q", 4096) + bytes(4080)
"""What HDF5 would run over for ever: a heap of strings whose first object has no size."""


def journal_of(path):
    return path.with_name(f"{path.name}.journal")


@pytest.fixture
def cut(make_cache, fork, exit_code):
    def cut(path, ids):
        """Add clips in a child that dies once its journal is in its place, and before it is applied."""
        pwrite = os.pwrite

        def run():
            os.pwrite = lambda *arguments: os._exit(9) if journal_of(path).exists() else pwrite(*arguments)
            make_cache(path, ids)

        assert exit_code(fork(run)) == 9
        assert journal_of(path).exists()

    return cut


@pytest.fixture
def cut_off(tmp_path, make_cache, copied, cut):
    """A cache whose commit of c and d was cut off before its journal was applied; `base.h5` is a copy from before."""
    path = copied(make_cache(tmp_path / "base.h5", "ab"), tmp_path / "cut.h5")
    cut(path, "cd")
    return path


@pytest.fixture
def steps(cut_off, copied):
    """The file that was cut off, the same completed, and the offsets of the bytes that differ."""
    done = copied(cut_off, cut_off.with_stem("done"))
    container = open_container(done)
    container.lock()
    container.close()
    assert not journal_of(done).exists()
    old, new = (np.frombuffer(path.read_bytes(), np.uint8) for path in (cut_off, done))
    return old, new, np.flatnonzero(old != new)


@pytest.fixture
def usable(make_cache, expected, contents):
    def usable(path, ids):
        """What a cache must be whose journal belongs to something else: read, checked, written."""
        assert contents(path) == expected(ids)
        assert verify(path).sound
        make_cache(path, "z")
        assert contents(path) == expected(f"{ids}z")
        assert not journal_of(path).exists()

    return usable


def test_a_commit_is_completed_wherever_applying_it_was_cut_off(cut_off, steps, make_cache, expected, contents, copied):
    """In order, as one process writes, and in any, as a disk does whose power fails."""
    (old, new, differ), order, run = steps, random.Random(0), cut_off.with_stem("run")
    in_order = [differ[:count] for count in range(0, len(differ) + 1, max(1, len(differ) // 20))]
    by_chance = [order.sample(differ.tolist(), count) for count in range(1, len(differ), max(1, len(differ) // 6))]
    for applied in [*in_order, differ[:1], differ[-1:], differ, *by_chance]:
        half = old.copy()
        half[applied] = new[applied]
        copied(cut_off, run).write_bytes(half.tobytes())
        assert contents(run) == expected("abcd")
        make_cache(run, "e")
        assert contents(run) == expected("abcde")
        assert not journal_of(run).exists()


def test_a_half_applied_commit_is_completed_though_a_clip_of_it_was_damaged(cut_off, steps, make_cache, spoil):
    old, new, differ = steps
    half = old.copy()
    half[differ[: len(differ) // 2]] = new[differ[: len(differ) // 2]]
    cut_off.write_bytes(half.tobytes())
    spoil(cut_off, "c")
    for _ in range(2):
        assert [clip.id for clip in verify(cut_off).damaged] == ["c"]
        make_cache(cut_off, "")


def test_a_copy_restored_over_a_cut_off_commit_is_read_and_written(cut_off, usable):
    shutil.copyfile(cut_off.with_stem("base"), cut_off)
    usable(cut_off, "ab")


def test_another_cache_moved_over_a_cut_off_commit_is_read_and_written(cut_off, make_cache, usable):
    make_cache(cut_off.with_stem("other"), "uvwxy").replace(cut_off)
    usable(cut_off, "uvwxy")


def test_a_journal_is_not_applied_over_the_remains_of_another_attempt(cut_off, cut, usable):
    other = cut_off.with_stem("base")
    cut(other, "cd")
    assert other.stat().st_size == cut_off.stat().st_size
    journal_of(other).unlink()
    other.replace(cut_off)
    usable(cut_off, "ab")


def test_a_second_starter_does_not_take_away_the_journal_of_the_first(tmp_path, make_header, cut, expected, contents):
    path, look, link = tmp_path / "a.h5", Path.exists, os.link
    second = Hdf5Container(str(path))
    with pytest.MonkeyPatch.context() as patch:

        def the_first_comes():
            patch.undo()
            cut(path, "a")

        def late_look(place, **options):
            if found := look(place, **options) or place != path:
                return found
            the_first_comes()
            return False

        def late_link(*arguments):
            the_first_comes()
            link(*arguments)

        patch.setattr(Path, "exists", late_look)
        patch.setattr(os, "link", late_link)
        second.create(make_header().to_attributes(), {})
    second.lock()
    second.close()
    assert contents(path) == expected("a")


def test_a_commit_whose_journal_is_taken_away_is_not_taken_for_one(
    tmp_path, make_cache, make_header, make_clip, expected, contents, monkeypatch
):
    path, write = make_cache(tmp_path / "a.h5", "ab"), journal._write_journal

    def write_in_vain(place, *arguments):
        write(place, *arguments)
        place.unlink()

    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("c"))
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_write_journal", write_in_vain)
            with pytest.raises(CacheWriteError, match="vanished"):
                writer.commit()
        assert contents(path) == expected("ab")
        writer.add(make_clip("d"))
    assert contents(path) == expected("abd")


def test_a_link_to_a_cache_is_as_good_as_the_cache(tmp_path, make_cache, copied, cut, expected, contents):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    path, link = tmp_path / "there" / "a.h5", tmp_path / "here" / "b.h5"
    link.symlink_to("../there/a.h5")
    make_cache(link, "ab")
    assert contents(path) == expected("ab")
    cut(path, "c")
    assert contents(link) == expected("abc")
    make_cache(link, "d")
    assert contents(path) == contents(link) == expected("abcd")
    compacting = open_container(link)
    compacting.rewrite([])
    assert link.is_symlink()
    assert contents(path) == expected("abcd")
    assert [p.name for p in tmp_path.glob("*/*")].count("b.h5") == len(list(tmp_path.glob("here/*"))) == 1


def test_any_id_is_read_back(tmp_path, make_cache, make_header, expected, contents):
    """The first one begins as a heap of strings of HDF5 does."""
    ids, header = ["GCOLxxxx0", "z" * 60, "GCOL\x01"], make_header(vad=False)
    path = make_cache(tmp_path / "a.h5", ids, per_segment=3, header=header)
    assert contents(path) == expected(ids, header)
    assert verify(path).sound


def test_numbers_that_look_like_a_damaged_heap_of_strings_are_read_back_and_copied(
    tmp_path, make_header, make_clip, record
):
    header, path = make_header(), tmp_path / "a.h5"
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


@pytest.mark.parametrize("stage", ["_segment_names", "_blocks"])
def test_a_commit_in_the_middle_of_opening_is_no_damage(tmp_path, make_cache, expected, contents, monkeypatch, stage):
    """HDF5 is refused every byte from then on, and what it then cannot read must not pass for lost."""
    path, ids = tmp_path / "a.h5", [f"{i:05}" for i in range(8)]
    make_cache(path, ids[:4])
    plain, calls = getattr(hdf5_container, stage), []

    def interrupted(file):
        calls.append(stage)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(hdf5_container, stage, plain)
                make_cache(path, ids[4:])
        return plain(file)

    monkeypatch.setattr(hdf5_container, stage, interrupted)
    snapshot = hdf5_container._Snapshot(path)
    assert len(calls) > 1
    monkeypatch.undo()
    fresh = hdf5_container._Snapshot(path)
    assert (snapshot.names, snapshot.blocks) == (fresh.names, fresh.blocks)
    assert all(snapshot.blocks)
    assert snapshot.segments.keys() == fresh.segments.keys()
    assert verify(path).sound
    assert contents(path) == expected(ids)
