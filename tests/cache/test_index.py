"""Blocks of the index: they make opening fast, may be lost without harm, and still know what a lost segment held."""

import asyncio
import shutil

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import cache.containers.sealed_file
from cache import CacheWriter, DamagedCacheError, open_cache
from cache.containers.container import SegmentIndex
from cache.containers.zarr_group import ZarrContainer
from cache.index import pack, places_in, unpack
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.verify import verify

only_zarr = pytest.mark.parametrize("three_segments", [".zarr"], indirect=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@st.composite
def segment_indexes(draw):
    ids = draw(st.lists(TEXT, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return SegmentIndex(
        name=draw(TEXT),
        attributes=draw(st.dictionaries(TEXT, st.integers() | TEXT | st.lists(TEXT, max_size=2), max_size=3)),
        ids=ids,
        offsets=np.cumsum([0, *rng.integers(1, 2**40, len(ids))]),
        seconds=rng.normal(size=len(ids)),
        checksums=rng.integers(0, 2**32, len(ids), dtype=np.uint32),
        places=draw(st.dictionaries(TEXT, st.lists(st.integers(), max_size=3), max_size=3)),
    )


def fields(segment):
    """All of a segment's index, comparable with `==`."""
    arrays = [np.asarray(a) for a in (segment.offsets, segment.seconds, segment.checksums)]
    return (
        segment.name,
        dict(segment.attributes),
        list(segment.ids),
        [(a.dtype.str, a.tolist()) for a in arrays],
        dict(segment.places),
    )


quick = settings(deadline=None, derandomize=True, database=None, max_examples=50)


@quick
@given(st.lists(segment_indexes(), max_size=4))
def test_a_block_gives_back_what_was_packed(segments):
    block = pack(segments)
    assert [fields(s) for s in unpack(block)] == [fields(s) for s in segments]
    assert places_in(block) == {s.name: dict(s.places) for s in segments}


@quick
@given(st.lists(segment_indexes(), max_size=2), st.data())
def test_a_block_that_is_cut_off_or_changed_is_refused(segments, data):
    block = pack(segments)
    at = data.draw(st.integers(0, len(block) - 1))
    changed = bytearray(block)
    changed[at] ^= data.draw(st.integers(1, 255))
    for damaged in (block[:at], bytes(changed), block + b"\0"):
        assert places_in(damaged) == {}
        with pytest.raises(ValueError, match="block"):
            unpack(damaged)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("cache.writer.SEGMENTS_PER_BLOCK", 3)


@pytest.fixture
def commit_and_die(fork, exit_code, make_header, make_clip):
    """Commit segments of one clip in a process that is gone before it can pack the rest."""

    def write(path, ids):
        writer = CacheWriter(path, make_header())
        for clip_id in ids:
            writer.add(make_clip(clip_id))
            writer.commit()

    def commit_and_die(path, ids):
        assert exit_code(fork(write, path, ids)) == 0
        return path

    return commit_and_die


@pytest.fixture
def segments_read(path, monkeypatch):
    """How often the index that a segment carries was read through zarr or h5py."""
    read = []

    def count(owner, name):
        real = getattr(owner, name)

        def counted(*arguments):
            read.append(arguments[-1])
            return real(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(ZarrContainer, "read_segment")
    count(cache.containers.sealed_file, "_parse")
    return read


def test_opening_reads_only_the_segments_that_no_block_covers(
    path, small_blocks, commit_and_die, segments_read, expected, contents, make_cache
):
    commit_and_die(path, "abcdefgh")
    with open_cache(path) as store:
        assert len(segments_read) == 2
        assert store.unindexed == store.segments[6:]
    make_cache(path, [])  # a run with nothing to do packs what a crash left
    segments_read.clear()
    assert contents(path) == expected("abcdefgh")
    assert segments_read == []


def test_a_segment_alone_gets_a_block_too(path, make_cache):
    make_cache(path, "a")
    with open_cache(path) as store:
        assert store.unindexed == []


def blocks_of(path):
    """Names of the blocks of the index."""
    if path.suffix == ".zarr":
        return sorted(p.name for p in (path / "index").iterdir() if p.is_dir())
    with h5py.File(path) as file:
        return sorted(file.get("index", ()))


def replace_block(path, name, change):
    """Put other bytes in the place of a block; none removes the bytes and leaves the name, as a crash may."""
    if path.suffix == ".zarr":
        chunk = path / "index" / name / "c" / "0"
        content = change(chunk.read_bytes())
        chunk.unlink() if content is None else chunk.write_bytes(content)
    else:
        with h5py.File(path, "r+") as file:
            content = change(file["index"][name][()].tobytes())
            del file["index"][name]
            file["index"].create_dataset(name, data=np.frombuffer(content or b"", np.uint8))


def remove_index(path):
    if path.suffix == ".zarr":
        shutil.rmtree(path / "index")
    else:
        with h5py.File(path, "r+") as file:
            del file["index"]


def test_without_its_blocks_a_cache_is_the_same(copy, ids, expected, contents):
    before = list(contents(copy).items())
    remove_index(copy)
    assert list(contents(copy).items()) == before == list(expected(ids).items())
    with open_cache(copy) as store:
        assert store.unindexed == store.segments
    assert verify(copy).sound


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda block: block[:50] + bytes([block[50] ^ 1]) + block[51:], True),
        (lambda block: block[:-1], True),
        (lambda block: block[:10], True),
        (lambda _: b"", True),
        (lambda _: None, None),
    ],
    ids=["flipped", "truncated", "cut to its head", "empty", "half written"],
)
def test_a_damaged_block_is_passed_over_and_verify_says_so(copy, change, found, ids, expected, contents):
    (name,) = blocks_of(copy)
    replace_block(copy, name, change)
    assert list(contents(copy).items()) == list(expected(ids).items())
    report = verify(copy)
    assert report.damaged == []
    if found is None:  # what a kill leaves is no damage; in HDF5 it leaves nothing
        found = copy.suffix == ".h5"
    assert report.sound is not found
    if found:
        assert report.structure == ["1 blocks of the index do not match their checksum"]
        repair(copy)
        assert verify(copy).sound
        assert list(contents(copy).items()) == list(expected(ids).items())


def test_a_block_of_features_made_otherwise_counts_for_nothing(path, ids, make_cache, make_header, expected, contents):
    """As where a cache was deleted and made anew under a reader's eyes."""
    if path.suffix == ".h5":
        pytest.skip("a block lies in the file whose header it follows")
    other = make_cache(path.with_stem("other"), ids, header=make_header(layer=9))
    make_cache(path, ids)
    shutil.copytree(other / "index" / blocks_of(other)[0], path / "index" / "0-other")
    assert list(contents(path).items()) == list(expected(ids).items())
    assert verify(path).sound


def test_segments_that_two_writers_packed_count_once(tmp_path, make_header, make_clip, expected, contents):
    path = tmp_path / "a.zarr"
    writers = [CacheWriter(path, make_header()) for _ in range(2)]
    for clip_id in "abcd":
        writer = writers["abcd".index(clip_id) % 2]
        writer.add(make_clip(clip_id))
        writer.commit()
    for writer in writers:
        writer.__exit__(None, None, None)
    assert len(blocks_of(path)) == 2
    shutil.copytree(path / "index" / blocks_of(path)[0], path / "index" / "again")
    assert list(contents(path).items()) == list(expected("abcd").items())
    with open_cache(path) as store:
        assert (len(store.segments), store.unindexed) == (4, [])


@pytest.mark.parametrize("packed", [True, False])
def test_of_a_clip_in_several_segments_the_first_counts(
    tmp_path, packed, make_header, make_clip, record, expected, contents
):
    """Two writers make the same clip with other bits, as two kinds of GPU do."""
    path = tmp_path / "a.zarr"
    with CacheWriter(path, make_header()) as one, CacheWriter(path, make_header()) as other:
        for writer, ids, frames in ((one, "ab", None), (other, "bc", 7), (one, "d", None)):
            for clip_id in ids:
                writer.add(make_clip(clip_id, frames=frames))
            writer.commit()
    if not packed:
        remove_index(path)
    found = contents(path)
    assert list(found) == list("abcd")
    assert {i: found[i] for i in "abd"} == expected("abd")
    assert found["c"] == record(make_header().stored(make_clip("c", frames=7)))


@pytest.fixture
def lose():
    """Remove a segment of a Zarr cache: all of it, or the one file that says that it is there."""

    def lose(path, segment, part):
        folder = path / "segments" / segment
        shutil.rmtree(folder) if part == "folder" else (folder / "zarr.json").unlink()

    return lose


@only_zarr
def test_a_lost_segment_is_known_by_its_block_and_its_clips_can_be_filled_again(
    three, lose, make_cache, make_header, expected, contents, record
):
    with open_cache(three) as store:
        lost = store.segments[1]
    lose(three, lost, "folder")
    with open_cache(three) as store:
        assert (store.lost, store.ids) == ({lost}, list("abcdef"))
        for read in (lambda: store["c"], lambda: store.load("abcdef")):
            with pytest.raises(DamagedCacheError, match=f"clip 'c' of segment {lost} is damaged"):
                read()
        assert {i: record(store[i]) for i in "abef"} == expected("abef")
    damaged = verify(three).damaged
    assert [(clip.id, clip.segment, clip.lost) for clip in damaged] == [("c", lost, True), ("d", lost, True)]
    with CacheWriter(three, make_header()) as writer:
        assert {"c", "d"} <= writer.done.keys()  # only repair gives them up
    assert [clip.id for clip in repair(three).dropped] == ["c", "d"]
    assert contents(three) == expected("abef")
    assert verify(three).sound
    make_cache(three, "cd")
    assert contents(three) == expected("abcdef")


@only_zarr
def test_a_segment_that_lost_only_its_commit_record_loses_no_clip(three, lose, expected, contents):
    with open_cache(three) as store:
        lose(three, store.segments[1], "commit record")
    assert contents(three) == expected("abcdef")
    assert [(clip.id, clip.lost) for clip in verify(three).damaged] == [("c", False), ("d", False)]
    summary = repair(three)
    assert ([clip.id for clip in summary.restored], summary.dropped) == (["c", "d"], [])
    assert verify(three).sound
    assert list(contents(three).items()) == list(expected("abcdef").items())
    with zarr.config.set({"async.concurrency": 1}):
        assert len(list(zarr.open_group(three, mode="r")["segments"].group_keys())) == 3


def test_a_segment_that_is_compacted_away_while_it_is_looked_for_is_not_missed(
    tmp_path, make_cache, expected, contents, monkeypatch
):
    path = make_cache(tmp_path / "a.zarr", "abcd", per_segment=2)
    remove_index(path)
    exists, compaction = zarr.storage.LocalStore.exists, []

    async def exists_late(store, key):
        if not compaction:
            monkeypatch.undo()
            compaction.append(asyncio.create_task(asyncio.to_thread(compact, path)))
        await compaction[0]
        return await exists(store, key)

    monkeypatch.setattr(zarr.storage.LocalStore, "exists", exists_late)
    with open_cache(path) as store:
        assert list(store) == list("abcd")
    assert list(contents(path).items()) == list(expected("abcd").items())


@pytest.mark.parametrize(
    ("method", "packed", "before"),
    [
        ("read_blocks", True, False),
        ("segment_names", True, True),
        ("segment_names", True, False),
        ("segment_names", False, False),
        ("read_segment", False, True),
        ("read_segment", False, False),
    ],
)
def test_a_cache_that_is_compacted_while_it_is_opened_is_whole(
    tmp_path, method, packed, before, make_cache, expected, contents, monkeypatch
):
    path = make_cache(tmp_path / "a.zarr", "abcd", per_segment=2)
    if not packed:
        remove_index(path)
    real = getattr(ZarrContainer, method)

    def compacted(*arguments):
        monkeypatch.undo()
        if before:
            compact(path)
        try:
            return real(*arguments)
        finally:
            if not before:
                compact(path)

    monkeypatch.setattr(ZarrContainer, method, compacted)
    with open_cache(path) as store:
        assert list(store) == list("abcd")
        assert store.lost == frozenset()
    assert list(contents(path).items()) == list(expected("abcd").items())
