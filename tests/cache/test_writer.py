"""What a writer takes and refuses, and when it commits."""

import os
from dataclasses import replace

import numpy as np
import pytest

from cache import CacheError, CacheFormatError, CacheWriter, open_cache


def committed(path):
    with open_cache(path) as store:
        return list(store)


def test_a_clip_is_taken_once(path, make_header, make_clip):
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("a"))
        with pytest.raises(CacheError, match="clip 'a' is already in"):
            writer.add(make_clip("a"))
        writer.commit()
        with pytest.raises(CacheError, match="clip 'a' is already in"):
            writer.add(make_clip("a"))
    assert committed(path) == ["a"]


def test_a_clip_of_an_earlier_run_is_known_and_refused(copy, ids, make_header, make_clip):
    with CacheWriter(copy, make_header()) as writer:
        assert writer.done == {i: make_clip(i).seconds for i in ids}
        with pytest.raises(CacheError, match="is already in"):
            writer.add(make_clip(ids[3]))
        writer.add(make_clip("new"))
        assert writer.done["new"] == make_clip("new").seconds
    assert committed(copy) == [*ids, "new"]


ROWS = np.zeros((5, 4), np.float32)
REFUSED = {
    "other dim": ({"frames": np.zeros((5, 3), np.float32)}, r"frames have shape \(5, 3\), expected \(frames, 4\)"),
    "one axis": ({"frames": np.zeros(4, np.float32)}, "frames have shape"),
    "no frames": ({"frames": np.zeros((0, 4), np.float32), "vad": np.zeros((0, 3), np.float32)}, "frames have shape"),
    "NaN": ({"frames": np.full_like(ROWS, np.nan)}, "are not finite"),
    "infinity": ({"frames": np.full_like(ROWS, -np.inf)}, "are not finite"),
    "float16 overflow": ({"frames": np.full_like(ROWS, 7e4)}, "overflow float16; use --dtype float32"),
    "vad of another length": ({"vad": np.zeros((4, 3), np.float32)}, "vad and vad_pooled have shapes"),
    "no vad": ({"vad": None}, "vad and vad_pooled have shapes"),
    "no pooled vad": ({"vad_pooled": None}, "vad and vad_pooled have shapes"),
    "pooled vad by frame": ({"vad_pooled": np.zeros((5, 3), np.float32)}, "vad and vad_pooled have shapes"),
    "NaN in vad": ({"vad": np.full((5, 3), np.nan, np.float32)}, "not finite"),
    "NaN in pooled vad": ({"vad_pooled": np.full(3, np.nan, np.float32)}, "not finite"),
    "infinite seconds": ({"seconds": float("inf")}, "inf seconds"),
    "negative seconds": ({"seconds": -1.0}, "-1.0 seconds"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_clip_that_does_not_fit_is_refused_by_name_and_the_rest_is_kept(
    path, change, message, make_header, make_clip
):
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("before"))
        with pytest.raises(CacheFormatError, match=f"clip 'bad/clip': .*{message}"):
            writer.add(replace(make_clip("bad/clip", frames=5), **change))
        writer.add(make_clip("after"))
    assert committed(path) == ["before", "after"]


@pytest.mark.parametrize("name", ["", "nul\0", "n\0ul", "not utf-8 \udcff"])
def test_an_id_that_a_container_could_not_give_back_is_refused(path, name, make_header, make_clip):
    """File names are bytes on Linux, and HDF5 pads strings with NUL: such an id would take its whole segment along."""
    clip = replace(make_clip("a"), id=name)
    with CacheWriter(path, make_header()) as writer:
        with pytest.raises(CacheFormatError, match="UTF-8"):
            writer.add(clip)
        writer.add(make_clip("b"))
    assert committed(path) == ["b"]


@pytest.mark.parametrize("name", [" a ", "a\n", "a\\b", "../a", "zarr.json", "A\u030a"])
def test_any_other_id_comes_back_as_it_was(tmp_path, name, make_cache, expected, contents):
    for suffix in (".zarr", ".h5"):
        assert contents(make_cache(tmp_path / f"a{suffix}", [name])) == expected([name])


def test_float32_takes_what_overflows_float16(path, make_header, make_clip):
    clip = replace(make_clip("a", frames=5), frames=np.full((5, 4), 7e4, np.float32))
    with CacheWriter(path, make_header(dtype="float32")) as writer:
        writer.add(clip)
    with open_cache(path) as store:
        np.testing.assert_array_equal(store["a"].frames, clip.frames)


def test_float64_input_is_rounded_once(path, make_header, make_clip):
    values = np.random.default_rng(0).normal(size=(5, 4))
    with CacheWriter(path, make_header()) as writer:
        writer.add(replace(make_clip("a", frames=5), frames=values))
    with open_cache(path) as store:
        np.testing.assert_array_equal(store["a"].frames, values.astype(np.float16))


def test_the_caller_may_reuse_its_buffers_after_add(path, make_header, make_clip):
    clip = make_clip("a", frames=5)
    kept = clip.frames.astype(np.float16)
    with CacheWriter(path, make_header()) as writer:
        writer.add(replace(clip, frames=kept))
        kept[:] = 0
    with open_cache(path) as store:
        np.testing.assert_array_equal(store["a"].frames, clip.frames.astype(np.float16))


def test_views_and_foreign_byte_order_are_stored_as_values(path, make_header, make_clip):
    clip = make_clip("a", frames=6)
    odd = np.asfortranarray(clip.frames.astype(">f4"))[::2]
    with CacheWriter(path, make_header()) as writer:
        writer.add(replace(clip, frames=odd, vad=clip.vad[::2]))
    with open_cache(path) as store:
        np.testing.assert_array_equal(store["a"].frames, clip.frames[::2].astype(np.float16))
        np.testing.assert_array_equal(store["a"].vad, clip.vad[::2])


def test_a_segment_is_committed_at_its_size(path, make_header, make_clip):
    bytes_of_one = 10 * 4 * 2
    with CacheWriter(path, make_header(), segment_bytes=2 * bytes_of_one) as writer:
        seen = []
        for name in "abc":
            writer.add(make_clip(name, frames=10))
            seen.append(len(committed(path)))
    assert seen == [0, 2, 2]
    assert committed(path) == list("abc")


def test_a_segment_is_committed_after_its_time(path, make_header, make_clip, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with CacheWriter(path, make_header(), segment_seconds=60) as writer:
        seen = []
        for name, passed in zip("abcd", [10, 49, 1, 59], strict=True):
            now[0] += passed
            writer.add(make_clip(name))
            seen.append(len(committed(path)))
    assert seen == [0, 0, 3, 3]


def test_a_commit_of_nothing_makes_no_segment(path, make_header):
    with CacheWriter(path, make_header()) as writer:
        writer.commit()
    with open_cache(path) as store:
        assert list(store.segments) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_through_an_exception_commits_what_was_added(path, error, make_header, make_clip, expected, contents):
    def interrupted():
        with CacheWriter(path, make_header()) as writer:
            writer.add(make_clip("a"))
            writer.add(make_clip("b"))
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(path) == expected("ab")


def test_what_is_committed_is_read_while_the_writer_goes_on(path, make_header, make_clip, expected, contents):
    with CacheWriter(path, make_header()) as writer:
        for number, name in enumerate("abc", 1):
            writer.add(make_clip(name))
            writer.commit()
            assert contents(path) == expected("abc"[:number])


def test_a_commit_is_flushed_before_it_counts(path, make_header, make_clip, folder_of, monkeypatch):
    """The order that survives a power cut: data, then the record of the commit, then its name."""
    flushed, place = [], path if path.suffix == ".zarr" else folder_of(path)
    monkeypatch.setattr(
        os, "fsync", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(place)))
    )
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("a"))
        flushed.clear()
        writer.commit()
        committed = list(flushed)  # a block of index follows
    names = [name.rpartition("/")[2] for name in committed]
    record = committed.index(next(n for n in committed if n.count("/") == 3 and n.endswith("/zarr.json")))
    assert {"frames", "vad", "vad_pooled", "ids", "offsets", "seconds", "checksums"} <= set(names[:record])
    assert committed[-1] == "/segments"
