"""Convert and merge: the same clips in another container, another dtype, or one cache."""

import functools
import itertools
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

import cache.maintenance.transfer as transfer_module
from cache import CacheFormatError, CacheWriter, DamagedCacheError, StaleCacheError, open_cache
from cache.containers.by_suffix import open_container
from cache.derive.derived import derive
from cache.maintenance.transfer import ROUNDED, transfer

OTHER = {".zarr": ".h5", ".h5": ".zarr"}


@pytest.fixture
def other(path):
    """A place for a cache of the other container."""
    return path.with_name(f"other{OTHER[path.suffix]}")


@pytest.mark.parametrize("vad", [True, False])
def test_a_cache_goes_to_the_other_container_and_back_bit_for_bit(
    path, other, vad, ids, make_cache, make_header, contents
):
    make_cache(path, ids, header=make_header(vad))
    transfer([path], other)
    back = path.with_stem("back")
    transfer([other], back)
    assert list(contents(path).items()) == list(contents(other).items()) == list(contents(back).items())
    with open_cache(path) as a, open_cache(back) as b:
        assert (a.header, a.fingerprint) == (b.header, b.fingerprint)


def test_a_copy_that_was_cut_short_goes_on(path, other, make_cache, make_header, make_clip, expected, contents):
    make_cache(path, "abcd")
    make_cache(other, "ab")
    summary = transfer([path], other)
    assert (summary.written, summary.present) == (2, 2)
    assert contents(other) == expected("abcd")
    again = transfer([path], other)
    assert (again.written, again.present) == (0, 4)


def test_a_narrower_cache_is_what_extraction_would_have_stored(
    path, other, make_cache, make_header, expected, contents
):
    make_cache(path, "abc", header=make_header(dtype="float32"))
    transfer([path], other, dtype="float16")
    assert contents(other) == expected("abc")
    with open_cache(other) as store:
        assert store.fingerprint == make_header().fingerprint


def test_a_wider_cache_says_that_its_numbers_were_rounded(path, other, make_cache, make_header, contents):
    make_cache(path, "abc")
    transfer([path], other, dtype="float32")
    with open_cache(path) as narrow, open_cache(other) as wide:
        assert wide.fingerprint[ROUNDED] == "float16"
        for clip_id in narrow:
            assert wide[clip_id].frames.dtype == np.float32
            np.testing.assert_array_equal(wide[clip_id].frames, narrow[clip_id].frames)
    with pytest.raises(StaleCacheError, match=ROUNDED):
        CacheWriter(other, make_header(dtype="float32"))
    back = path.with_stem("back")
    transfer([other], back, dtype="float16")
    assert list(contents(back).items()) == list(contents(path).items())
    with open_cache(back) as store:
        assert store.fingerprint == make_header().fingerprint


def test_an_unknown_dtype_is_refused_before_anything_is_made(path, other, make_cache):
    make_cache(path, "a")
    with pytest.raises(CacheFormatError, match="float16 or float32, got 'float64'"):
        transfer([path], other, dtype="float64")
    assert not other.exists()


def test_caches_made_alike_become_one_and_the_first_counts(path, other, make_cache, expected, contents):
    make_cache(path, "abc")
    make_cache(other, "cbx")
    target = path.with_stem("all")
    summary = transfer([path, other], target)
    assert (summary.written, summary.repeated) == (4, 2)
    assert list(contents(target)) == list("abcx")
    assert contents(target) == expected("abcx")


def test_caches_made_otherwise_are_not_merged(path, other, make_cache, make_header):
    make_cache(path, "a")
    make_cache(other, "b", header=make_header(layer=3))
    with pytest.raises(StaleCacheError, match=r"layer \(stored 3, wanted 12\)"):
        transfer([path, other], path.with_stem("all"))
    assert not path.with_stem("all").exists()


def test_one_id_with_two_lengths_is_refused_by_name(path, other, make_cache, make_header, make_clip):
    make_cache(path, "ab")
    with CacheWriter(other, make_header()) as writer:
        writer.add(make_clip("b", frames=30))
    with pytest.raises(StaleCacheError, match=r"clip 'b' is 0\.\d+ s long in .* and 0\.61 s in"):
        transfer([path, other], path.with_stem("all"))
    assert not path.with_stem("all").exists()


def test_extras_go_along_and_must_be_equal(path, other, make_header, make_clip):
    extras = {"mean": np.arange(4.0), "scale": np.ones((2, 3), np.float32)}
    for place, values in ((path, extras), (other, extras | {"mean": np.zeros(4)})):
        with CacheWriter(place, make_header(), values) as writer:
            writer.add(make_clip(place.stem))
    copy = path.with_stem("copy").with_suffix(OTHER[path.suffix])
    transfer([path], copy)
    with open_cache(copy) as store:
        assert store.extras.keys() == extras.keys()
        for name, values in extras.items():
            np.testing.assert_array_equal(store.extras[name], values)
    with pytest.raises(StaleCacheError, match="not equal to the last bit"):
        transfer([path, other], path.with_stem("all"))


def test_progress_counts_every_clip(path, other, make_cache):
    make_cache(path, "abc")
    seen = []
    transfer([path], other, on_progress=lambda *state: seen.append(state[:2]))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert os.path.exists(other)


@pytest.mark.parametrize("stride", [37, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_copy_that_is_killed_at_any_step_goes_on_and_ends_as_if_it_had_not_been(
    path, other, stride, dies, make_cache, expected, contents, faults, monkeypatch
):
    monkeypatch.setattr(transfer_module, "CacheWriter", functools.partial(CacheWriter, segment_bytes=60))
    make_cache(path, "abcdef")
    for step in itertools.count(1, stride):
        target = other.with_stem(f"run{step}")
        if not dies(step, lambda target: transfer([path], target), target):
            break
        found = contents(target) if target.exists() and open_container(target).read_attributes() else {}
        assert list(found.items()) == list(expected("abcdef").items())[: len(found)]
        transfer([path], target)
        faults.survived(expected("abcdef"), contents(target))
        assert list(contents(target)) == list("abcdef")
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert step > 10


@pytest.mark.parametrize("sources", [1, 2])
def test_a_clip_that_the_target_holds_with_another_length_is_refused_before_anything_is_written(
    path, other, sources, make_cache, make_header, make_clip, state_of
):
    make_cache(path, "ab")
    make_cache(path.with_stem("more"), "c")
    with CacheWriter(other, make_header()) as writer:
        writer.add(make_clip("b", frames=30))
    before = state_of(other)
    with pytest.raises(StaleCacheError, match=r"clip 'b' is .* two different media have one id"):
        transfer([path, path.with_stem("more")][:sources], other)
    assert state_of(other) == before


def test_a_target_made_otherwise_is_refused(path, other, make_cache, make_header, state_of):
    make_cache(path, "a")
    make_cache(other, "b", header=make_header(layer=3))
    before = state_of(other)
    with pytest.raises(StaleCacheError, match="layer"):
        transfer([path], other)
    assert state_of(other) == before


def test_a_target_derived_with_another_transform_is_refused(path, other, make_header, make_clip, state_of):
    for place, value in ((path, 1.0), (other, 2.0)):
        with CacheWriter(place, make_header(), {"mean": np.full(4, value)}) as writer:
            writer.add(make_clip(place.stem))
    before = state_of(other)
    with pytest.raises(StaleCacheError, match="not equal to the last bit"):
        transfer([path], other)
    assert state_of(other) == before


def test_a_number_too_large_for_float16_is_refused_by_its_clip(path, other, make_header, make_clip, contents):
    header = make_header(dtype="float32")
    with CacheWriter(path, header) as writer:
        writer.add(make_clip("fits"))
        writer.add(replace(make_clip("large", frames=3), frames=np.full((3, 4), 7e4, np.float32)))
    with pytest.raises(CacheFormatError, match="clip 'large': its features overflow float16"):
        transfer([path], other, dtype="float16")
    assert list(contents(other)) == ["fits"]


def test_a_damaged_clip_is_named_and_those_before_it_are_kept(
    path, other, make_cache, make_clip, spoil, expected, contents
):
    make_cache(path, "abc")
    spoil(path, "b")
    with pytest.raises(DamagedCacheError, match="clip 'b'"):
        transfer([path], other)
    assert contents(other) == expected("a")


def test_a_copy_onto_itself_has_nothing_to_do(path, make_cache, state_of):
    make_cache(path, "abc")
    before = state_of(path)
    assert transfer([path], path).written == 0
    assert state_of(path) == before


def test_a_copy_into_the_other_container_keeps_the_fingerprint_of_a_derived_cache(tmp_path, make_cache):
    source = make_cache(tmp_path / "a.zarr", "abcde")
    transfer([source], tmp_path / "b.zarr", dtype="float32")
    derive(tmp_path / "b.zarr", tmp_path / "c.zarr", pool=2)
    transfer([tmp_path / "c.zarr"], tmp_path / "d.h5")
    with open_cache(tmp_path / "c.zarr") as one, open_cache(tmp_path / "d.h5") as other:
        assert one.fingerprint == other.fingerprint
