"""Verify finds whatever happened to stored bytes, or nothing did; and names the damaged clips, no others."""

import os
import random
import shutil

import h5py
import numpy as np
import pytest

from cache import CacheFormatError, CacheNotFoundError, CacheWriter, EmiError, open_cache
from cache.containers.container import segment_name
from cache.maintenance.verify import verify

only_zarr = pytest.mark.parametrize("three_segments", [".zarr"], indirect=True)


def faults_of(size, flips):
    """Flips at some offsets, then the file cut off, then gone: (name, offset or length)."""
    offsets = random.Random(size).sample(range(size), min(size, flips))
    cuts = [size // 2] if flips == 1 else [size - 1, size // 2, 0]
    return [("flip", i) for i in offsets] + [("cut", n) for n in cuts] + [("delete", 0)]


@pytest.fixture
def unnoticed(plainly, contents):
    def unnoticed(path, before):
        """What is wrong where verify finds nothing: whatever is not as it was, through our reader or a plain one."""
        try:
            if not verify(path).sound:
                return None
        except EmiError:
            return None
        except Exception as error:
            return f"verify raises {error!r}"
        try:
            return None if contents(path) == plainly(path) == before else "the contents differ"
        except Exception as error:
            return repr(error)

    return unnoticed


@pytest.fixture
def damage(flipped, faults):
    def damage(file, sound, fault, at):
        if fault == "delete":
            file.unlink()
        else:
            file.write_bytes(flipped(sound, at) if fault == "flip" else sound[:at])
        faults.count("flips" if fault == "flip" else "cuts")

    return damage


@pytest.mark.parametrize("ids", ["ab", "abc"], ids=["one segment", "two and a block"])
@pytest.mark.parametrize("flips", [1, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_whatever_happens_to_a_file_of_a_zarr_cache_verify_finds_it_or_it_did_not_matter(
    tmp_path, ids, flips, make_cache, contents, files_of, unnoticed, damage
):
    path = make_cache(tmp_path / "a.zarr", ids)
    before, wrong = contents(path), []
    for file in files_of(path):
        sound = file.read_bytes()
        for fault, at in faults_of(len(sound), flips):
            if fault == "delete" and len(ids) == 2 and file.parent.parent.name == "segments":
                continue  # without this file nothing was ever committed, and no block says otherwise
            damage(file, sound, fault, at)
            if reason := unnoticed(path, before):
                wrong.append((str(file.relative_to(path)), fault, at, reason))
            file.write_bytes(sound)
    assert wrong == [], "\n".join(map(str, wrong))


@pytest.mark.parametrize("ids", ["ab", "abc"], ids=["one segment", "two and a block"])
@pytest.mark.parametrize("flips", [40, pytest.param(2500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_whatever_happens_to_an_hdf5_cache_verify_finds_it_or_it_did_not_matter(
    tmp_path, ids, flips, make_cache, contents, unnoticed, damage, faults, fork, exit_code
):
    """In a child, since HDF5 may crash over damaged metadata; each time in a new file, as it knows an open one."""
    path = make_cache(tmp_path / "a.h5", ids)
    before, sound = contents(path), path.read_bytes()
    trials = [trial for trial in faults_of(len(sound), flips) if trial[0] != "delete"]

    def try_all(report):
        for number, (fault, at) in enumerate(trials):
            copy = path.with_name(f"{number}.h5")
            damage(copy, sound, fault, at)
            if reason := unnoticed(copy, before):
                os.write(report, f"{fault} {at}: {reason}\n".encode())
            copy.unlink()

    read, report = os.pipe()
    child = fork(try_all, report, seconds=1500)
    os.close(report)
    with os.fdopen(read) as reports:
        assert reports.read() == ""
    assert exit_code(child) == 0
    faults.count("flips", len(trials))


@pytest.mark.parametrize("part", ["frames", "vad", "vad_pooled"])
def test_exactly_the_damaged_clips_are_named(path, part, make_cache, spoil):
    ids = [f"{i:02d}" for i in range(20)]
    make_cache(path, ids, per_segment=7)
    victims = random.Random(part).sample(ids, 6)
    for clip_id in victims:
        spoil(path, clip_id, part)
    report = verify(path)
    assert sorted(clip.id for clip in report.damaged) == sorted(victims)
    assert {(clip.lost, clip.reason) for clip in report.damaged} == {(True, "the bytes do not match their checksum")}
    assert (report.clips, report.segments, report.sound) == (20, 3, False)
    with open_cache(path) as store:
        assert {clip.segment for clip in report.damaged} <= set(store.segments)


def segments_of(path):
    with open_cache(path) as store:
        return list(store.segments)


@only_zarr
@pytest.mark.parametrize("array", ["frames", "vad", "vad_pooled"])
def test_clips_whose_numbers_are_gone_are_named(three, array):
    shutil.rmtree(three / "segments" / segments_of(three)[1] / array)
    report = verify(three)
    assert [(clip.id, clip.lost) for clip in report.damaged] == [("c", True), ("d", True)]
    assert (report.unreadable, report.structure) == ({}, [])


@only_zarr
@pytest.mark.parametrize("array", ["ids", "offsets", "seconds", "checksums"])
def test_clips_whose_index_is_gone_are_named_by_the_block(three, array):
    shutil.rmtree(three / "segments" / segments_of(three)[1] / array)
    report = verify(three)
    assert [(clip.id, clip.lost) for clip in report.damaged] == [("c", False), ("d", False)]
    assert report.damaged[0].reason.startswith("its segment's index: ")


@only_zarr
@pytest.mark.parametrize("fault", ["deleted", "changed"])
def test_a_segment_whose_only_index_is_damaged_is_named_with_what_can_be_read_of_its_clips(three, fault):
    (victim,) = segments_of(three)[1:2]
    shutil.rmtree(three / "index")
    chunk = next(f for f in (three / "segments" / victim / "seconds" / "c").rglob("*") if f.is_file())
    chunk.unlink() if fault == "deleted" else chunk.write_bytes(chunk.read_bytes()[::-1])
    report = verify(three)
    assert list(report.unreadable) == [victim]
    assert {clip.id for clip in report.damaged} <= {"c", "d"}
    assert (report.clips, report.segments, report.sound) == (4, 2, False)


def test_an_hdf5_segment_that_cannot_be_read_leaves_the_others(tmp_path, make_cache, make_header, make_clip):
    path = tmp_path / "a.h5"
    make_cache(path, "abcdef")
    victim = segments_of(path)[1]
    with h5py.File(path, "r+") as file:
        del file["index"]
        del file["segments"][victim]["offsets"]
    report = verify(path)
    assert list(report.unreadable) == [victim]
    assert (report.clips, report.segments, report.sound) == (4, 2, False)


@pytest.mark.parametrize("vad", [True, False])
def test_a_sound_cache_is_counted_and_nothing_else(path, vad, make_cache, make_header):
    ids = "abcdefg"
    make_cache(path, ids, per_segment=3, header=make_header(vad))
    calls = []
    report = verify(path, lambda *call: calls.append(call))
    with open_cache(path) as store:
        frames, seconds = int(store.num_frames.sum()), store.seconds.sum()
    assert report.sound
    assert (report.clips, report.segments, report.bytes) == (7, 3, frames * 4 * 2)
    assert (report.damaged, report.unreadable, report.structure, report.leftovers) == ([], {}, [], (0, 0))
    assert [call[:2] for call in calls] == [(3, 7), (6, 7), (7, 7)]
    assert sum(call[2] for call in calls) == pytest.approx(seconds)


def test_what_a_killed_writer_left_is_no_damage(tmp_path, make_cache):
    path = make_cache(tmp_path / "a.zarr", "ab")
    left = path / "segments" / segment_name()
    left.mkdir()
    (left / "half").write_bytes(bytes(1000))
    report = verify(path)
    assert report.sound
    assert report.leftovers == (1, 1000)


def test_a_cache_without_clips_is_sound(path, make_cache):
    assert verify(make_cache(path, [])).sound


def test_where_no_cache_is_verify_says_so(path):
    with pytest.raises(CacheNotFoundError, match="there is no feature cache"):
        verify(path)
    path.with_suffix(".txt").touch()
    with pytest.raises(CacheFormatError, match="a feature cache is named"):
        verify(path.with_suffix(".txt"))


@pytest.fixture
def with_extras(path, make_header, make_clip):
    with CacheWriter(path, make_header(), {"mean": np.arange(4.0)}) as writer:
        writer.add(make_clip("a"))
    return path


def test_damage_to_the_extra_arrays_is_found(with_extras, files_of, flipped):
    assert verify(with_extras).sound
    needle = np.arange(4.0).tobytes()
    (file,) = [f for f in files_of(with_extras) if needle in f.read_bytes()]
    content = file.read_bytes()
    file.write_bytes(flipped(content, content.index(needle)))
    report = verify(with_extras)
    assert report.damaged == []
    assert report.structure == ["the extras do not match their checksum"]


def test_missing_extra_arrays_are_found(with_extras):
    if with_extras.suffix == ".zarr":
        shutil.rmtree(with_extras / "extras")
    else:
        with h5py.File(with_extras, "r+") as file:
            del file["extras"]
    assert [p.startswith("the extras") for p in verify(with_extras).structure] == [True]
