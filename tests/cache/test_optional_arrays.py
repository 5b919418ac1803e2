"""Frames with times of their own, and marks of frames in which nothing was found: version 2 of the format."""

from dataclasses import replace

import numpy as np
import pytest

from cache import CacheFormatError, CacheWriter, Clip, Header, StaleCacheError, open_cache
from cache.derive.derived import derive
from cache.format import AUDIO
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify
from cache.shared import shared_load

IDS = "abcdef"


@pytest.fixture
def header(make_header):
    return make_header(timed=True)


@pytest.fixture
def timed(path, header, make_cache):
    return make_cache(path, IDS, header=header)


def test_clips_come_back_bit_for_bit_and_plain_readers_see_the_same(timed, header, expected, contents, plainly):
    assert list(contents(timed).items()) == list(expected(IDS, header).items()) == list(plainly(timed).items())
    with open_cache(timed) as store:
        assert store.header == header
        assert (store.hop_seconds, store.header.modality, store.header.optional) == (None, "face", ("times", "valid"))


def test_a_cache_states_version_2_only_where_it_has_optional_arrays(timed, tmp_path, make_cache, plain):
    attributes, (first, *_) = plain(timed)
    assert attributes["version"] == 2
    assert {"times", "valid"} <= first[1].keys()
    assert first[1]["times"].dtype == np.float32
    assert first[1]["valid"].dtype == np.bool_
    attributes, (first, *_) = plain(make_cache(tmp_path / f"old{timed.suffix}", IDS))
    assert attributes["version"] == 1
    assert not {"modality", "optional"} & attributes.keys()
    assert not {"times", "valid"} & first[1].keys()


def test_another_modality_alone_is_still_version_1(path, make_header, make_cache, plain):
    attributes, _ = plain(make_cache(path, "a", header=replace(make_header(), modality="face")))
    assert (attributes["version"], attributes["modality"]) == (1, "face")


def test_frames_that_are_not_valid_are_zeros_whatever_was_in_them(path, header):
    frames, vad = np.full((3, 4), np.nan), np.full((3, 3), np.inf)
    frames[1], vad[1] = 1, 2
    times = np.array([[0, 0.5], [0.5, 0.6], [0.6, 2]])
    with CacheWriter(path, header) as writer:
        writer.add(Clip("a", frames, vad, np.zeros(3), 2.0, times, np.array([False, True, False])))
    with open_cache(path) as store:
        clip = store["a"]
    np.testing.assert_array_equal(clip.frames, [[0] * 4, [1] * 4, [0] * 4])
    np.testing.assert_array_equal(clip.vad, [[0] * 3, [2] * 3, [0] * 3])
    assert clip.valid.tolist() == [False, True, False]
    np.testing.assert_array_equal(clip.times, times.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": None}, r"its times has shape None, expected \(5, 2\)"),
        ({"valid": np.ones((5, 1))}, r"its valid has shape \(5, 1\), expected \(5,\)"),
        ({"times": np.array([["a", "b"]] * 5)}, "its times holds <U1, expected real numbers"),
        ({"times": np.full((5, 2), np.nan)}, "not starts and ends of frames in seconds"),
        ({"times": np.array([[1, 0]] * 5)}, "not starts and ends of frames in seconds"),
        ({"times": np.arange(10)[::-1].reshape(5, 2)}, "not starts and ends of frames in seconds"),
    ],
)
def test_wrong_times_and_marks_are_refused(header, make_clip, change, message):
    with pytest.raises(CacheFormatError, match=message):
        header.stored(replace(make_clip("a", 5, timed=True), **change))


def test_times_in_a_cache_without_them_are_refused(make_header, make_clip):
    with pytest.raises(CacheFormatError, match="its times has shape"):
        make_header().stored(make_clip("a", timed=True))


def test_caches_with_and_without_marks_are_not_mixed(timed, make_header):
    with pytest.raises(CacheFormatError, match=r"times, valid of modality face, and .* were to be added"):
        CacheWriter(timed, make_header())


@pytest.mark.parametrize(("hop", "optional"), [(None, ()), (0.02, ("times",)), (0.02, ("faces",))])
def test_a_header_has_a_hop_or_times(hop, optional):
    with pytest.raises(CacheFormatError, match=r"either a hop or times|optional arrays of a cache are"):
        Header(fingerprint={"dtype": "float16"}, dim=2, hop_seconds=hop, optional=optional)


@pytest.mark.parametrize("load", [lambda s, ids, _: s.load_all(ids), shared_load])
def test_many_clips_are_loaded_with_their_times_and_marks(timed, header, clip_of, tmp_path, load):
    ids = ["e", "b", "f", "a"]
    stored = [header.stored(clip_of(header, i)) for i in ids]
    with open_cache(timed) as store:
        for _ in range(2):
            loaded = load(store, ids, tmp_path / "maps")
            np.testing.assert_array_equal(loaded.rows, np.concatenate([clip.joined() for clip in stored]))
            np.testing.assert_array_equal(loaded.times, np.concatenate([clip.times for clip in stored]))
            np.testing.assert_array_equal(loaded.valid, np.concatenate([clip.valid for clip in stored]))
            assert loaded.offsets.tolist() == np.cumsum([0, *(len(clip.frames) for clip in stored)]).tolist()


def test_a_cache_without_them_loads_none(filled, ids):
    with open_cache(filled) as store:
        assert (store.load_all(ids).times, store.load_all(ids).valid) == (None, None)
        assert (store[ids[0]].times, store[ids[0]].valid, store.header.modality) == (None, None, AUDIO)


@pytest.mark.parametrize("part", ["times", "valid"])
def test_a_flipped_byte_is_named_by_verify_and_dropped_by_repair(path, part, header, make_cache, expected, contents):
    clips = {i: Clip(i, np.ones((40, 4)), np.ones((40, 3)), np.ones(3), 1.0) for i in "xyz"}
    rng = np.random.default_rng(0)
    with CacheWriter(path, header) as writer:
        for clip in clips.values():
            times = np.cumsum(rng.random(80)).reshape(40, 2)
            writer.add(replace(clip, times=times, valid=rng.random(40) < 0.5))
    with open_cache(path) as store:
        needle = getattr(store["y"], part).tobytes()
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    file = next(f for f in files if needle in f.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(needle) + 7] ^= 1
    file.write_bytes(content)
    assert [clip.id for clip in verify(path).damaged if clip.lost] == ["y"]
    summary = repair(path)
    assert [clip.id for clip in summary.dropped] == ["y"]
    assert verify(path).sound
    assert list(contents(path)) == ["x", "z"]


def test_compact_convert_and_merge_keep_them(timed, tmp_path, header, make_cache, expected, contents):
    assert compact(timed).segments == (3, 1)
    assert verify(timed).sound
    assert contents(timed) == expected(IDS, header)
    other = tmp_path / ("other.h5" if timed.suffix == ".zarr" else "other.zarr")
    transfer([timed], other)
    assert contents(other) == expected(IDS, header)
    more = make_cache(tmp_path / "more.zarr", "ghi", header=header)
    merged = tmp_path / "merged.zarr"
    assert transfer([other, more], merged).written == 9
    assert contents(merged) == expected("abcdefghi", header)


def test_a_derived_cache_means_over_valid_frames_only(tmp_path, make_header):
    header = Header(
        fingerprint={"dtype": "float32"}, dim=2, hop_seconds=None, optional=("times", "valid"), modality="face"
    )
    frames = np.array([[1, 10], [3, 30], [7, 70], [9, 90], [5, 50]], np.float32)
    times = np.array([[0, 1], [1, 2], [2, 5], [5, 6], [8, 9]])
    with CacheWriter(tmp_path / "a.zarr", header) as writer:
        writer.add(Clip("a", frames, None, None, 9.0, times, np.array([True, False, False, False, True])))
    derive(tmp_path / "a.zarr", tmp_path / "b.zarr", pool=2, dtype="float32")
    with open_cache(tmp_path / "b.zarr") as store:
        clip = store["a"]
        assert (store.hop_seconds, store.header.modality) == (None, "face")
    np.testing.assert_array_equal(clip.frames, [[1, 10], [0, 0], [5, 50]])
    np.testing.assert_array_equal(clip.times, [[0, 2], [2, 6], [8, 9]])
    assert clip.valid.tolist() == [True, False, True]


def test_what_a_derived_cache_is_fitted_on_are_valid_frames(tmp_path):
    rng = np.random.default_rng(1)
    frames, valid = rng.normal(5, 2, (200, 3)).astype(np.float32), rng.random(200) < 0.5
    plain = Header(fingerprint={"dtype": "float32"}, dim=3, hop_seconds=0.1)
    for name, header, clip in (
        ("marked", replace(plain, optional=("valid",)), Clip("a", frames, None, None, 20.0, None, valid)),
        ("plain", plain, Clip("a", frames[valid], None, None, 20.0)),
    ):
        with CacheWriter(tmp_path / f"{name}.zarr", header) as writer:
            writer.add(clip)
        derive(tmp_path / f"{name}.zarr", tmp_path / f"{name}-pca.zarr", pca=2, standardise=True, train_ids=["a"])
    with open_cache(tmp_path / "marked-pca.zarr") as marked, open_cache(tmp_path / "plain-pca.zarr") as plain_store:
        np.testing.assert_array_equal(marked["a"].frames[valid], plain_store["a"].frames)
        assert not marked["a"].frames[~valid].any()


def test_two_clips_of_other_fingerprints_stay_apart(timed, make_header):
    with pytest.raises(StaleCacheError, match="layer"):
        CacheWriter(timed, make_header(timed=True, layer=3))
