"""What goes into a cache comes out of it: the same clips, bits, and order, from either container."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cache
from cache import CacheWriter, open_cache


def test_clips_come_back_bit_for_bit_in_the_order_of_writing(filled, ids, expected, contents):
    assert list(contents(filled).items()) == list(expected(ids).items())


@pytest.mark.parametrize(("vad", "dtype"), [(True, "float32"), (False, "float16"), (False, "float32")])
def test_other_dtypes_and_no_vad_come_back_too(path, ids, vad, dtype, make_header, make_cache, expected, contents):
    header = make_header(vad, dtype=dtype)
    make_cache(path, ids[:3], per_segment=3, header=header)
    assert contents(path) == expected(ids[:3], header)


def test_a_clip_has_the_shapes_and_dtypes_of_the_format(filled, ids, make_clip):
    with open_cache(filled) as store:
        clip = store[ids[0]]
    frames = len(make_clip(ids[0]).frames)
    assert (clip.id, clip.seconds) == (ids[0], frames * 0.02 + 0.01)
    assert (clip.frames.shape, clip.frames.dtype) == ((frames, 4), np.float16)
    assert (clip.vad.shape, clip.vad.dtype) == ((frames, 3), np.float32)
    assert (clip.vad_pooled.shape, clip.vad_pooled.dtype) == ((3,), np.float32)


def test_a_backbone_without_vad_gives_none(path, make_header, make_cache):
    make_cache(path, ["a"], header=make_header(vad=False))
    with open_cache(path) as store:
        assert (store["a"].vad, store["a"].vad_pooled, store.vad_names) == (None, None, ())


@pytest.mark.parametrize("per_segment", [1, 3])
def test_the_cut_into_segments_does_not_show(path, ids, per_segment, make_cache, expected, contents):
    make_cache(path, ids[:3], per_segment=per_segment)
    assert list(contents(path).items()) == list(expected(ids[:3]).items())
    with open_cache(path) as store:
        assert len(store.segments) == 3 // per_segment


def test_the_cache_is_a_mapping_in_the_order_of_writing(filled, ids, make_clip):
    with open_cache(filled) as store:
        assert len(store) == len(ids)
        assert list(store) == store.ids == ids
        assert ids[2] in store
        assert "absent" not in store
        assert 7 not in store
        assert store.num_frames.tolist() == [len(make_clip(i).frames) for i in ids]
        assert store.seconds.tolist() == [make_clip(i).seconds for i in ids]


def test_the_header_comes_back(filled, make_header):
    header = make_header()
    with open_cache(filled) as store:
        assert store.header == header
        assert (store.fingerprint, store.dim, store.vad_names) == (header.fingerprint, header.dim, header.vad_names)
        assert store.hop_seconds == 0.02


def test_a_cache_without_clips_is_a_cache(path, make_header):
    with CacheWriter(path, make_header()):
        pass
    with open_cache(path) as store:
        assert (len(store), list(store), len(store.num_frames)) == (0, [], 0)
        assert store.load([])[0].shape == (0, 7)


def test_clips_of_one_frame_and_of_thousands_share_a_segment(path, make_header, make_clip, record, contents):
    header = make_header()
    clips = [make_clip("one", frames=1), make_clip("long", frames=5000), make_clip("last", frames=1)]
    with CacheWriter(path, header) as writer:
        for clip in clips:
            writer.add(clip)
    assert contents(path) == {clip.id: record(header.stored(clip)) for clip in clips}


def test_load_joins_frames_and_vad_in_the_order_asked_for(filled, ids, make_header, make_clip):
    wanted = [ids[4], ids[0], ids[4], ids[3]]
    with open_cache(filled) as store:
        rows, offsets = store.load(wanted)
    stored = [make_header().stored(make_clip(i)) for i in wanted]
    assert rows.dtype == np.float16
    assert offsets.tolist() == [0, *np.cumsum([len(clip.frames) for clip in stored])]
    np.testing.assert_array_equal(rows[:, :4], np.concatenate([clip.frames for clip in stored]))
    np.testing.assert_array_equal(rows[:, 4:], np.concatenate([clip.vad for clip in stored]).astype(np.float16))


def test_load_without_vad_is_the_frames(path, make_cache, make_header, make_clip):
    make_cache(path, "abc", per_segment=2, header=make_header(vad=False, dtype="float32"))
    with open_cache(path) as store:
        rows, _ = store.load("cab")
    np.testing.assert_array_equal(rows, np.concatenate([make_clip(i, vad=False).frames for i in "cab"]))
    assert rows.dtype == np.float32


@pytest.mark.parametrize("vad", [True, False])
def test_zarr_and_hdf5_hold_the_same_clips(tmp_path, ids, vad, make_header, make_cache, contents):
    header = make_header(vad)
    zarr, hdf5 = (make_cache(tmp_path / f"a{suffix}", ids, 6, header) for suffix in (".zarr", ".h5"))
    assert contents(zarr) == contents(hdf5)
    with open_cache(zarr) as a, open_cache(hdf5) as b:
        assert a.header == b.header
        np.testing.assert_array_equal(a.load(ids)[0], b.load(ids)[0])


@pytest.mark.parametrize("name", ["a.hdf5", "a.H5", "a.ZARR", "a.zarr/"])
def test_suffixes_are_read_without_case_and_with_a_trailing_slash(tmp_path, name, make_cache, expected, contents):
    assert contents(make_cache(f"{tmp_path}/{name}", "ab")) == expected("ab")


def test_folders_above_the_cache_are_made(path, make_cache, expected, contents):
    deep = path.parent / "of" / "another" / path.name
    assert contents(make_cache(deep, "a")) == expected("a")


def test_an_empty_folder_is_a_place_for_a_zarr_cache(tmp_path, make_cache, expected, contents):
    (tmp_path / "a.zarr").mkdir()
    assert contents(make_cache(tmp_path / "a.zarr", "a")) == expected("a")


def test_a_cache_may_lie_behind_any_url_of_fsspec(make_cache, expected, contents):
    url = "memory://tests/round-trip.zarr"
    make_cache(url, "ab")
    make_cache(url, "c")
    assert contents(url) == expected("abc")


def test_a_cache_may_be_moved(copy, ids, expected, contents):
    moved = copy.rename(copy.with_stem("moved"))
    assert contents(moved) == expected(ids)


def test_reading_and_writing_import_no_torch(tmp_path):
    program = """
import sys, numpy as np
from cache import CacheWriter, Clip, Header, open_cache
for path in sys.argv[1:]:
    with CacheWriter(path, Header(fingerprint={"dtype": "float16"}, dim=2)) as writer:
        writer.add(Clip("a", np.ones((3, 2)), None, None, 1.0))
    open_cache(path).load(["a"])
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, tmp_path / "a.zarr", tmp_path / "a.h5"]
    done = subprocess.run(command, cwd=Path(cache.__file__).parents[1], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_file_url_is_a_path(tmp_path, make_cache, expected, contents):
    path = make_cache(tmp_path / "a b.zarr", "abcde")
    with open_cache(f"file://{str(path).replace(' ', '%20')}") as store:
        assert store.ids == list("abcde")
        np.testing.assert_array_equal(store["a"].frames, open_cache(Path(path))["a"].frames)
