"""Repair drops damaged clips and no others, can be killed and run again, and what it drops can be filled again."""

import itertools
import os
import shutil

import h5py
import numpy as np
import pytest

from cache import CacheLockedError, CacheWriteError, CacheWriter, DamagedCacheError, open_cache
from cache.containers import zarr_group
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.verify import verify

IDS = "abcdef"


def segment(path, number):
    with open_cache(path) as store:
        return store.segments[number]


def array_of(path, number, name):
    """Folder of an array of a Zarr segment."""
    return path / "segments" / segment(path, number) / name


def a_clip(path, spoil):
    spoil(path, "d")


def the_vad_of_clips_in_two_segments(path, spoil):
    spoil(path, "a", "vad")
    spoil(path, "e", "vad_pooled")


def every_clip_of_a_segment(path, spoil):
    spoil(path, "c")
    spoil(path, "d", "vad")


def every_clip(path, spoil):
    for clip_id in IDS:
        spoil(path, clip_id)


def an_index(path, spoil):
    """In the segment alone, where a block repeats it."""
    with open_cache(path) as store:
        needle = np.uint32(store.checksum("c")).tobytes()
    files = [path] if path.is_file() else [f for f in array_of(path, 1, "checksums").rglob("0") if f.is_file()]
    content = files[0].read_bytes()
    files[0].write_bytes(content.replace(needle, bytes(4), 1))


def a_block(path, spoil):
    if path.is_file():
        with h5py.File(path, "r+") as file:
            (block,) = file["index"].values()
            block[-1] ^= 1
    else:
        (chunk,) = path.glob("index/*/c/0")
        chunk.write_bytes(chunk.read_bytes()[:-1])


def the_frames_of_a_segment(path, spoil):
    shutil.rmtree(array_of(path, 1, "frames"))


def the_chunks_of_a_segment(path, spoil):
    shutil.rmtree(array_of(path, 1, "vad_pooled") / "c")


def the_metadata_of_an_array(path, spoil):
    (array_of(path, 2, "frames") / "zarr.json").write_text("{")


def a_segment(path, spoil):
    shutil.rmtree(path / "segments" / segment(path, 0))


def a_commit_record(path, spoil):
    (path / "segments" / segment(path, 0) / "zarr.json").unlink()


def the_only_index_of_a_segment(path, spoil):
    shutil.rmtree(array_of(path, 1, "offsets"))
    shutil.rmtree(path / "index")


def a_group(path, spoil):
    (path / "segments" / "zarr.json").unlink()


BOTH = [
    (a_clip, "d"),
    (the_vad_of_clips_in_two_segments, "ae"),
    (every_clip_of_a_segment, "cd"),
    (every_clip, IDS),
    (an_index, ""),
    (a_block, ""),
]
ZARR = [
    (the_frames_of_a_segment, "cd"),
    (the_chunks_of_a_segment, "cd"),
    (the_metadata_of_an_array, "ef"),
    (a_segment, "ab"),
    (a_commit_record, ""),
    (the_only_index_of_a_segment, "cd"),
    (a_group, ""),
]
CASES = [
    pytest.param(suffix, *case, id=f"{suffix}-{case[0].__name__}")
    for suffix, cases in ((".zarr", BOTH + ZARR), (".h5", BOTH))
    for case in cases
]


@pytest.mark.parametrize(("three_segments", "damage", "lost"), CASES, indirect=["three_segments"])
def test_repair_drops_what_is_damaged_and_keeps_every_other_clip_byte_for_byte(
    three, damage, lost, spoil, make_cache, expected, contents, plainly, state_of, faults
):
    damage(three, spoil)
    faults.count("flips")
    kept = [i for i in IDS if i not in lost]
    summary = repair(three)
    assert summary.changed
    assert {clip.id for clip in summary.dropped} == (set(lost) if not summary.unreadable else set())
    assert not {clip.id for clip in summary.restored} & set(lost)
    assert summary.clips == len(kept)
    faults.survived(expected(kept), contents(three))
    assert list(contents(three).items()) == list(expected(kept).items()) == list(plainly(three).items())
    assert verify(three).sound
    before = state_of(three)
    assert not repair(three).changed
    assert state_of(three) == before
    make_cache(three, lost)
    assert contents(three) == expected(IDS)
    assert verify(three).sound


@pytest.mark.parametrize("packed", [True, False])
def test_repair_of_a_sound_cache_writes_nothing(path, packed, make_cache, state_of):
    make_cache(path, IDS, per_segment=2 if packed else 6)
    before = state_of(path)
    summary = repair(path)
    assert (summary.changed, summary.clips, summary.dropped, summary.mended) == (False, 6, [], [])
    assert state_of(path) == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("victims", "stride"), [("a", 17), pytest.param("adf", 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_repair_that_is_killed_at_any_step_loses_no_sound_clip_and_can_be_run_again(
    three, victims, stride, dies, copied, spoil, expected, contents, record, faults
):
    sound = [i for i in IDS if i not in victims]
    for clip_id in victims:
        spoil(three, clip_id)
    run = three.with_stem("run")
    for step in itertools.count(1, stride):
        if not dies(step, repair, copied(three, run)):
            break
        with open_cache(run) as store:
            faults.survived(expected(sound), {i: record(store[i]) for i in sound})
        repair(run)
        faults.survived(expected(sound), contents(run))
        assert list(contents(run)) == sound
        assert verify(run).sound
        compact(run)
        assert list(contents(run).items()) == list(expected(sound).items())
        assert leftovers_of(run) == []
    assert step > 5


def leftovers_of(path):
    """What lies beside an HDF5 cache, or segments that do not count in a Zarr one."""
    if path.suffix == ".h5":
        return [p.name for p in path.parent.iterdir() if path.name in p.name and p != path]
    with open_cache(path) as store:
        return sorted({p.name for p in (path / "segments").iterdir() if p.is_dir()} - set(store.segments))


def test_a_segment_that_a_killed_repair_replaced_never_comes_back(
    tmp_path, fork, exit_code, make_cache, spoil, expected, contents
):
    """The new segment is there, the old one still is, and then the new one is replaced as well."""
    path = make_cache(tmp_path / "a.zarr", "abcd", per_segment=2)
    spoil(path, "a")

    def die_after_the_commit():
        zarr_group.GroupMetadata = lambda: os._exit(9)
        repair(path)

    assert exit_code(fork(die_after_the_commit)) == 9
    assert len(list(path.glob("segments/*/zarr.json"))) == 3
    assert contents(path) == expected("bcd")
    make_cache(path, "a")
    for _ in range(2):
        compact(path)
        assert contents(path) == expected("bcda")
        assert leftovers_of(path) == []


def test_of_two_copies_the_sound_one_is_kept_and_nothing_is_lost(
    tmp_path, make_header, make_clip, expected, contents, spoil
):
    path = tmp_path / "a.zarr"
    with CacheWriter(path, make_header()) as one, CacheWriter(path, make_header()) as other:
        for writer, ids in ((one, "ab"), (other, "bc")):
            for clip_id in ids:
                writer.add(make_clip(clip_id))
            writer.commit()
    spoil(path, "b")
    damaged = verify(path).damaged
    assert [clip.id for clip in damaged] == ["b"]
    summary = repair(path)
    assert (summary.changed, summary.dropped, [clip.id for clip in summary.restored]) == (True, [], ["b"])
    assert contents(path) == expected("abc")
    assert verify(path).sound


def test_repair_tells_what_it_wrote_anew(three, spoil):
    an_index(three, spoil)
    summary = repair(three)
    assert ([clip.id for clip in summary.restored], summary.dropped, summary.segments) == (["c", "d"], [], (3, 3))


def test_repair_is_refused_while_a_writer_is_open_and_a_writer_while_it_is_at_work(three, make_header, spoil, state_of):
    spoil(three, "a")
    with CacheWriter(three, make_header()):
        before = state_of(three)
        with pytest.raises(CacheLockedError, match="being written by another process"):
            repair(three)
        assert state_of(three) == before
    seen = []

    def try_to_write(*_):
        with pytest.raises(CacheLockedError) as caught:
            CacheWriter(three, make_header())
        seen.append(str(caught.value))

    repair(three, try_to_write)
    assert len(seen) == 3


def test_damaged_extra_arrays_are_refused_since_nothing_can_mend_them(path, make_header, make_clip, files_of, state_of):
    with CacheWriter(path, make_header(), {"mean": np.arange(4.0)}) as writer:
        writer.add(make_clip("a"))
    needle = np.arange(4.0).tobytes()
    (file,) = [f for f in files_of(path) if needle in f.read_bytes()]
    file.write_bytes(file.read_bytes().replace(needle, np.arange(1, 5.0).tobytes()))
    before = state_of(path)
    with pytest.raises(DamagedCacheError, match=r"left as it is: its extra arrays are damaged.*emi cache derive"):
        repair(path)
    assert state_of(path) == before


def test_extra_arrays_come_through_a_repair(path, make_header, make_clip, spoil):
    with CacheWriter(path, make_header(), {"mean": np.arange(4.0)}) as writer:
        for clip_id in "ab":
            writer.add(make_clip(clip_id))
    spoil(path, "a")
    repair(path)
    with open_cache(path) as store:
        np.testing.assert_array_equal(store.extras["mean"], np.arange(4.0))
        assert list(store) == ["b"]


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_disk_too_full_to_repair_on_costs_no_sound_clip(
    tiny_disk, suffix, make_cache, make_header, make_clip, spoil, expected, contents, record, faults
):
    path, ballast = tiny_disk / f"a{suffix}", tiny_disk / "ballast"
    clips = [make_clip(name, frames=25_000) for name in ("large 1", "large 2")]
    with CacheWriter(path, make_header()) as writer:
        for clip in [*clips, make_clip("a")]:
            writer.add(clip)
    sound = {clip.id: record(make_header().stored(clip)) for clip in clips}
    spoil(path, "a")
    ballast.write_bytes(bytes(2_900_000))
    with pytest.raises(CacheWriteError, match=r"No space left on device|could not be written"):
        repair(path)
    faults.count("full disks")
    with open_cache(path) as store:
        faults.survived(sound, {i: record(store[i]) for i in sound})
    ballast.unlink()
    assert [clip.id for clip in repair(path).dropped] == ["a"]
    assert contents(path) == sound
    assert [p.name for p in tiny_disk.iterdir()] == [path.name]
