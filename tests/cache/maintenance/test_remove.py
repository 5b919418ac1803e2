"""Clips that are removed leave no bytes behind; the others stay as they were, also where it is killed and run again."""

import itertools
import shutil

import numpy as np
import pytest
from zarr.storage import LocalStore

from cache import CacheLockedError, CacheNotFoundError, CacheWriteError, CacheWriter, DamagedCacheError, open_cache
from cache.maintenance.remove import remove
from cache.maintenance.rewrite import compact
from cache.maintenance.verify import verify

IDS = "abcdef"


@pytest.fixture
def holds(clip_of):
    """Whether any file of a cache, or beside it, holds bytes of a clip."""

    def holds(path, header, clip_id):
        stored = header.stored(clip_of(header, clip_id))
        needles = [stored.frames.tobytes(), stored.vad.tobytes(), stored.vad_pooled.tobytes()]
        files = [p for p in path.parent.rglob("*") if p.is_file() and path.name in str(p)]
        return any(needle in file.read_bytes() for file in files for needle in needles)

    return holds


@pytest.fixture
def header(make_header):
    return make_header()


@pytest.mark.parametrize("ids", ["b", "ace", "cd", IDS])
def test_removed_clips_are_gone_and_the_others_are_as_they_were(three, ids, header, holds, expected, contents, plainly):
    kept = [i for i in IDS if i not in ids]
    assert all(holds(three, header, i) for i in IDS)
    summary = remove(three, list(ids))
    assert (summary.removed, summary.unknown, summary.clips, summary.changed) == (list(ids), [], len(kept), True)
    assert list(contents(three).items()) == list(expected(kept).items()) == list(plainly(three).items())
    assert [i for i in IDS if holds(three, header, i)] == kept
    assert verify(three).sound
    assert not verify(three).leftovers[0]


def test_a_second_run_writes_nothing_and_names_what_is_not_there(three, state_of):
    remove(three, ["b"])
    before = state_of(three)
    summary = remove(three, ["b", "nobody", "b"])
    assert (summary.removed, summary.unknown, summary.clips, summary.changed) == ([], ["b", "nobody"], 5, False)
    assert state_of(three) == before


def test_known_clips_are_removed_beside_unknown_ones(three, contents):
    summary = remove(three, ["x", "a"])
    assert (summary.removed, summary.unknown) == (["a"], ["x"])
    assert list(contents(three)) == list("bcdef")


def test_times_marks_and_media_of_the_other_clips_stay(path, make_header, make_cache, expected, contents):
    header = make_header(timed=True)
    make_cache(path, IDS, header=header)
    remove(path, ["c"])
    assert contents(path) == expected("abdef", header)


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_removal_that_is_killed_at_any_step_and_run_again_ends_the_same(
    three, stride, dies, copied, header, holds, expected, contents, record, faults
):
    kept, run = "bcf", three.with_stem("run")
    for step in itertools.count(1, stride):
        if not dies(step, remove, copied(three, run), list("ade")):
            break
        with open_cache(run) as store:
            faults.survived(expected(kept), {i: record(store[i]) for i in kept})
        remove(run, list("ade"))
        assert list(contents(run).items()) == list(expected(kept).items())
        assert not [i for i in "ade" if holds(run, header, i)]
        assert verify(run).sound
        assert not verify(run).leftovers[0]
    assert step > 5


def test_a_clip_that_two_segments_hold_is_removed_from_both(tmp_path, header, make_cache, holds, contents):
    path, other = make_cache(tmp_path / "a.zarr", "ab"), make_cache(tmp_path / "b.zarr", "ac")
    (segment,) = (p for p in (other / "segments").iterdir() if p.is_dir())
    shutil.copytree(segment, path / "segments" / segment.name)
    assert list(contents(path)) == list("abc")
    remove(path, ["a"])
    assert list(contents(path)) == list("bc")
    assert not holds(path, header, "a")


def test_what_a_crashed_writer_left_is_removed_even_where_the_cache_never_held_the_clip(
    tmp_path, header, make_cache, holds
):
    path, other = make_cache(tmp_path / "a.zarr", "ab"), make_cache(tmp_path / "other" / "b.zarr", "c")
    (segment,) = (p for p in (other / "segments").iterdir() if p.is_dir())
    unfinished = shutil.copytree(segment, path / "segments" / segment.name)
    (unfinished / "zarr.json").unlink()
    assert holds(path, header, "c")
    summary = remove(path, ["c"])
    assert (summary.removed, summary.unknown, summary.changed) == ([], ["c"], True)
    assert not holds(path, header, "c")


def test_unsealed_work_and_folders_put_aside_lose_the_clip_too(
    tmp_path, header, make_cache, holds, clip_of, contents, folder_of
):
    path = make_cache(tmp_path / "a.h5", "ab")
    writer = CacheWriter(path, header)
    writer.add(clip_of(header, "c"))
    writer.add(clip_of(header, "d"))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert folder_of(path).exists()
    make_cache(tmp_path / "a.h5.stopped-1.zarr", "cx", header=header)
    summary = remove(path, ["c", "x"])
    assert (summary.removed, summary.clips) == (["c", "x"], 3)
    assert summary.aside == [str(tmp_path / "a.h5.stopped-1.zarr")]
    assert list(contents(path)) == list("abd")
    assert not holds(path, header, "c")
    assert not holds(path, header, "x")


def test_a_damaged_cache_is_left_as_it_is(three, spoil, state_of):
    spoil(three, "f")
    before = state_of(three)
    with pytest.raises(DamagedCacheError, match=r"is damaged, and was left as it is.*emi cache repair"):
        remove(three, ["a"])
    assert state_of(three) == before


def test_another_writer_is_in_the_way(three, header):
    with CacheWriter(three, header), pytest.raises(CacheLockedError):
        remove(three, ["a"])


def test_a_cache_that_is_not_there_is_said_to_be_missing(path):
    with pytest.raises(CacheNotFoundError):
        remove(path, ["a"])


def test_bytes_that_cannot_be_removed_are_told(tmp_path, make_cache, monkeypatch):
    path = make_cache(tmp_path / "a.zarr", IDS)

    real = LocalStore.delete_dir

    async def refuse(store, folder):
        if folder.startswith("segments/"):
            raise PermissionError
        await real(store, folder)

    monkeypatch.setattr("zarr.storage.LocalStore.delete_dir", refuse)
    with pytest.raises(CacheWriteError, match="not all of their bytes could be removed"):
        remove(path, ["a"])
    monkeypatch.undo()
    assert remove(path, ["a"]).unknown == ["a"]
    assert not verify(path).leftovers[0]


def test_the_seconds_of_progress_are_numbers_where_some_lengths_are_unknown(path, header, make_clip):
    seconds = {"a": float("nan"), "b": 2.0, "c": 3.0}
    with CacheWriter(path, header) as writer:
        for clip_id, length in seconds.items():
            clip = make_clip(clip_id)
            writer.add(type(clip)(clip_id, clip.frames, clip.vad, clip.vad_pooled, length))
    told = []
    remove(path, ["c"], *[lambda *numbers: told.append(numbers[2])] * 2)
    assert np.isfinite(told).all()
    assert sum(told) == pytest.approx(5 + 2)
    compact(path, lambda *numbers: told.append(numbers[2]))
    assert np.isfinite(told).all()
