"""Gathering many clips at once gives what reading one by one gives, whatever the order, the target and the layout."""

import os
import random
import re
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from cache import DamagedCacheError, UnknownClipError, open_cache
from cache.containers import zarr_group as zarr_container
from cache.containers.zarr_group import ZarrContainer
from cache.containers.zarr_rows import read_rows, row_layout, shard_problems
from cache.maintenance.verify import verify

CLIPS = [f"{i:02d}" for i in range(24)]
ORDERS = {
    "as stored": CLIPS,
    "reversed": CLIPS[::-1],
    "shuffled": random.Random(0).sample(CLIPS, len(CLIPS)),
    "some": random.Random(1).sample(CLIPS, 7),
    "repeated": random.Random(2).choices(CLIPS, k=60),
    "runs": CLIPS[5:9] + CLIPS[2:7] + CLIPS[8:9],
    "none": [],
}


@pytest.fixture(scope="module", params=[".zarr", ".h5"])
def suffix(request):
    return request.param


@pytest.fixture(scope="module", params=[True, False], ids=["vad", "no vad"])
def many(request, suffix, tmp_path_factory, make_cache, make_header):
    """A cache of 24 clips in three segments, with and without VAD, for reading only."""
    path = tmp_path_factory.mktemp("many") / f"a{suffix}"
    return make_cache(path, CLIPS, per_segment=8, header=make_header(vad=request.param))


def one_by_one(store, ids, dtype=None):
    """What `load` has to give, from single reads."""
    parts = [store[i].joined() for i in ids]
    rows = np.concatenate([np.zeros((0, store.dim + len(store.vad_names)), store.header.dtype), *parts])
    return rows.astype(dtype or rows.dtype), np.cumsum([0, *map(len, parts)])


@pytest.mark.parametrize("run_bytes", [100, None])
@pytest.mark.parametrize("order", ORDERS)
def test_load_gives_what_single_reads_give(many, order, run_bytes, monkeypatch):
    if run_bytes:
        monkeypatch.setattr("cache.gather.RUN_BYTES", run_bytes)
    with open_cache(many) as store:
        rows, offsets = store.load(ORDERS[order])
        expected_rows, expected_offsets = one_by_one(store, ORDERS[order])
    assert (rows.dtype, offsets.dtype) == (np.float16, np.int64)
    assert rows.tobytes() == expected_rows.tobytes()
    assert offsets.tolist() == expected_offsets.tolist()


def strided(shape, dtype, folder):
    return np.zeros((shape[0] * 2, shape[1] + 3), dtype)[::2, 1:-2]


def in_fortran_order(shape, dtype, folder):
    return np.zeros(shape, dtype, order="F")


def memory_map(shape, dtype, folder):
    return np.lib.format.open_memmap(folder / "out.npy", "w+", dtype, shape)


def plain(shape, dtype, folder):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("make", [plain, strided, in_fortran_order, memory_map])
def test_load_fills_any_array_of_the_right_shape(many, make, dtype, tmp_path):
    ids = ORDERS["shuffled"]
    with open_cache(many) as store:
        expected_rows, _ = one_by_one(store, ids, np.float32)
        if dtype == np.float16:
            expected_rows = expected_rows.astype(np.float16)
        elif store.vad_names:  # which are float32, and were not rounded on the way here
            expected_rows[:, store.dim :] = np.concatenate([store[i].vad for i in ids])
        out = make(expected_rows.shape, dtype, tmp_path)
        rows, _ = store.load(ids, out=out)
    assert rows is out
    np.testing.assert_array_equal(out, expected_rows.astype(dtype))


@pytest.mark.parametrize("change", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_an_out_of_another_shape_is_refused_with_both_shapes(many, change):
    with open_cache(many) as store:
        shape = store.load(CLIPS)[0].shape
        wrong = (shape[0] + change[0], shape[1] + change[1])
        with pytest.raises(ValueError, match=re.escape(f"out has shape {wrong}, and these 24 clips take {shape}")):
            store.load(CLIPS, out=np.empty(wrong, np.float16))


def test_an_out_that_may_not_be_written_is_refused_and_no_clip_called_damaged(many):
    with open_cache(many) as store:
        out = np.empty_like(store.load(CLIPS)[0])
        out.flags.writeable = False
        with pytest.raises(ValueError, match="may not be written"):
            store.load(CLIPS, out=out)


def test_an_unknown_clip_is_named_before_anything_is_read(many):
    with open_cache(many) as store, pytest.raises(UnknownClipError, match="no clip 'absent'"):
        store.load([*CLIPS, "absent"])


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Chunks of one or two rows, shards of two chunks, and runs of a few rows: each run crosses chunks and shards."""
    write = ZarrContainer.write_segment
    monkeypatch.setattr(zarr_container, "CHUNK_BYTES", 16)
    monkeypatch.setattr(ZarrContainer, "write_segment", lambda self, segment: write(self, segment, 40))
    monkeypatch.setattr("cache.gather.RUN_BYTES", 60)


@pytest.mark.parametrize("vad", [True, False])
def test_runs_that_cross_chunks_and_shards_are_read_whole(
    tmp_path, vad, tiny_pieces, make_cache, make_header, expected, contents
):
    header = make_header(vad)
    path = make_cache(tmp_path / "a.zarr", CLIPS, per_segment=12, header=header)
    assert len(list(path.glob("segments/*/frames/c/*/0"))) > 20
    assert contents(path) == expected(CLIPS, header)
    with open_cache(path) as store:
        for ids in ORDERS.values():
            assert store.load(ids)[0].tobytes() == one_by_one(store, ids)[0].tobytes()
    assert verify(path).sound


@settings(deadline=None, derandomize=True, database=None, max_examples=40)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 5),
    dtype=st.sampled_from([np.float16, np.float32]),
    chunk_bytes=st.integers(1, 200),
    shard_bytes=st.integers(1, 800),
    data=st.data(),
)
def test_rows_read_from_the_files_are_those_that_zarr_reads(rows, columns, dtype, chunk_bytes, shard_bytes, data):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_container, "CHUNK_BYTES", chunk_bytes)
        values = np.random.default_rng(rows).normal(size=(rows, columns)).astype(dtype)
        zarr_container._write_array(folder, values, shard_bytes)
        layout = row_layout(Path(folder))
        assert layout is not None
        assert shard_problems(layout) == []
        array = zarr.open_array(folder, mode="r")
        for _ in range(5):
            starts = data.draw(st.lists(st.integers(0, rows), max_size=6))
            outs = [np.empty((data.draw(st.integers(0, rows - start)), columns), dtype) for start in starts]
            read_rows(layout, starts, outs)
            for start, out in zip(starts, outs, strict=True):
                assert out.tobytes() == np.asarray(array[start : start + len(out)]).tobytes()
                assert out.tobytes() == values[start : start + len(out)].tobytes()


@pytest.mark.parametrize(
    ("start", "shape", "dtype"),
    [(0, (11, 4), np.float16), (-1, (2, 4), np.float16), (0, (2, 3), np.float16), (0, (2, 4), np.float32)],
)
def test_rows_that_an_array_does_not_have_are_refused(tmp_path, start, shape, dtype):
    zarr_container._write_array(str(tmp_path / "x"), np.zeros((10, 4), np.float16))
    with pytest.raises(ValueError, match="are not in"):
        read_rows(row_layout(tmp_path / "x"), [start], [np.empty(shape, dtype)])


LAYOUTS = {
    "compressed": {"chunks": (4, 4), "compressors": zarr.codecs.ZstdCodec()},
    "unsharded": {"chunks": (4, 4), "compressors": None},
    "compressed in shards": {"chunks": (4, 4), "shards": (8, 4), "compressors": zarr.codecs.ZstdCodec()},
    "by columns": {"chunks": (4, 2), "shards": (8, 4), "compressors": None},
    "big-endian": {"chunks": (4, 4), "compressors": None, "serializer": zarr.codecs.BytesCodec(endian="big")},
    "one separator": {
        "chunks": (4, 4),
        "compressors": None,
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_array_in_another_layout_is_read_by_zarr(tmp_path, layout, make_cache, expected, contents):
    path = make_cache(tmp_path / "a.zarr", CLIPS[:8], per_segment=8)
    (folder,) = path.glob("segments/*/frames")
    values = zarr.open_array(folder, mode="r")[:]
    zarr.create_array(folder, data=values, zarr_format=3, overwrite=True, **layout)
    assert row_layout(folder) is None
    assert contents(path) == expected(CLIPS[:8])
    with open_cache(path) as store:
        assert store.load(CLIPS[7::-1])[0].tobytes() == one_by_one(store, CLIPS[7::-1])[0].tobytes()
    assert verify(path).sound


@pytest.mark.parametrize("part", ["frames", "vad", "vad_pooled"])
@pytest.mark.parametrize("run_bytes", [1, 1 << 20])
def test_of_a_run_only_the_damaged_clip_is_named(path, part, run_bytes, make_cache, spoil, monkeypatch):
    monkeypatch.setattr("cache.gather.RUN_BYTES", run_bytes)
    make_cache(path, CLIPS, per_segment=12)
    spoil(path, CLIPS[5], part)
    with open_cache(path) as store:
        with pytest.raises(DamagedCacheError, match=f"clip {CLIPS[5]!r}"):
            store.load(CLIPS)
        store.load(CLIPS[:5] + CLIPS[6:])


def test_a_shard_that_is_cut_off_takes_only_its_clips_along(tmp_path, tiny_pieces, make_cache, expected, contents):
    path = make_cache(tmp_path / "a.zarr", CLIPS, per_segment=24)
    shards = sorted(path.glob("segments/*/frames/c/*/0"), key=lambda p: int(p.parent.name))
    os.truncate(shards[-1], 10)
    with open_cache(path) as store:
        with pytest.raises(DamagedCacheError, match=f"clip {CLIPS[-1]!r}"):
            store.load(CLIPS)
        assert store.load(CLIPS[:20])[0].tobytes() == one_by_one(store, CLIPS[:20])[0].tobytes()


def test_load_goes_on_after_a_fork_in_parent_and_child(many, fork, exit_code):
    with open_cache(many) as store:
        before = store.load(CLIPS)[0].tobytes()

        def load():
            for order in ORDERS.values():
                assert store.load(order)[0].tobytes() == one_by_one(store, order)[0].tobytes()

        child = fork(load)
        load()
        assert exit_code(child) == 0
        assert store.load(CLIPS)[0].tobytes() == before


def test_several_threads_read_one_cache_at_once(many):
    with open_cache(many) as store:
        wanted = {name: one_by_one(store, ids)[0].tobytes() for name, ids in ORDERS.items()}
        store.close()  # so that all of them open it
        wrong, start = [], threading.Barrier(len(ORDERS))

        def read(name, ids):
            start.wait()
            for _ in range(5):
                if store.load(ids)[0].tobytes() != wanted[name] or one_by_one(store, ids)[0].tobytes() != wanted[name]:
                    wrong.append(name)

        threads = [threading.Thread(target=read, args=item) for item in ORDERS.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def rows_of(store, ids):
    return int(store.offsets(ids)[-1]), store.dim + len(store.vad_names)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "uint8", "bool", "complex64", "object"])
def test_an_out_that_is_not_of_floats_is_refused(filled, ids, dtype):
    with open_cache(filled) as store, pytest.raises(ValueError, match="give a float array at least as wide"):
        store.load(ids, out=np.zeros(rows_of(store, ids), dtype))


def test_an_out_narrower_than_the_cache_is_refused_and_a_wider_one_filled(path, ids, make_cache, make_header):
    make_cache(path, ids, header=make_header(dtype="float32"))
    with open_cache(path) as store:
        shape, (rows, _) = rows_of(store, ids), store.load(ids)
        with pytest.raises(ValueError, match="out has dtype float16, and the cache float32"):
            store.load(ids, out=np.zeros(shape, np.float16))
        for wide in (">f4", "f8"):
            np.testing.assert_array_equal(store.load(ids, out=np.zeros(shape, wide))[0], rows)


def shared_rows(rows, columns):
    return as_strided(np.zeros(columns, np.float32), (rows, columns), (0, 4))


def staggered_rows(rows, columns):
    return as_strided(np.zeros(rows + columns, np.float32), (rows, columns), (4, 4))


def half_elements(rows, columns):
    return as_strided(np.zeros(rows * columns, np.float32), (rows, columns), (2 * columns, 2))


@pytest.mark.parametrize("make", [shared_rows, staggered_rows, half_elements])
def test_an_out_that_overlaps_itself_is_refused(filled, ids, make):
    with open_cache(filled) as store, pytest.raises(ValueError, match="out overlaps itself in memory"):
        store.load(ids, out=make(*rows_of(store, ids)))


def test_an_out_that_runs_backwards_or_is_a_part_of_another_is_filled(filled, ids):
    with open_cache(filled) as store:
        (rows, columns), (expected, _) = rows_of(store, ids), store.load(ids)
        for out in (
            np.zeros((rows, columns), np.float16)[::-1, ::-1],
            np.zeros((columns, 3 * rows), np.float16).T[::3],
            np.zeros((rows, columns, 2), np.float16)[..., 1],
        ):
            np.testing.assert_array_equal(store.load(ids, out=out)[0], expected)
