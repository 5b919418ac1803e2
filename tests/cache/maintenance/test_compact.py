"""Compact makes one segment of many: the same clips in the same order, killed at any moment or not."""

import contextlib
import itertools
import os
import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cache import CacheLockedError, CacheWriteError, CacheWriter, DamagedCacheError, EmiError, open_cache
from cache.containers import zarr_group
from cache.containers.by_suffix import open_container
from cache.containers.hdf5_file import Hdf5Container
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.verify import verify
from emi.cli.cache import compact as cache_compact

IDS = "abcdef"


def segments_of(path):
    with open_cache(path) as store:
        return list(store.segments)


@pytest.mark.parametrize("vad", [True, False])
def test_contents_and_order_are_the_same_in_one_segment_and_fewer_files(
    path, vad, make_cache, make_header, expected, contents, plainly, state_of
):
    header = make_header(vad)
    make_cache(path, IDS, per_segment=2, header=header)
    files, size = open_container(path).stored()
    with open_cache(path) as store:
        rows = store.load(IDS)[0].tobytes()
    summary = compact(path)
    assert (summary.segments, summary.clips, summary.changed) == ((3, 1), 6, True)
    assert list(contents(path).items()) == list(expected(IDS, header).items()) == list(plainly(path).items())
    with open_cache(path) as store:
        assert (len(store.segments), store.header) == (1, header)
        assert store.load(IDS)[0].tobytes() == rows
    assert open_container(path).stored()[0] <= files
    assert open_container(path).stored()[1] < size
    assert verify(path).sound
    before = state_of(path)
    summary = compact(path)
    assert (summary.segments, summary.clips, summary.changed) == ((1, 1), 6, False)
    assert state_of(path) == before
    assert list(path.parent.iterdir()) == [path]


def test_a_compacted_cache_is_filled_and_compacted_on(three, make_cache, expected, contents):
    for more in ("g", "hi", "j"):
        compact(three)
        make_cache(three, more)
    assert list(contents(three).items()) == list(expected("abcdefghij").items())
    assert compact(three).segments == (2, 1)
    assert list(contents(three).items()) == list(expected("abcdefghij").items())
    assert verify(three).sound


@pytest.mark.parametrize("ids", ["", "a"])
def test_there_is_nothing_to_do_for_no_segment_or_one(path, ids, make_cache, state_of):
    make_cache(path, ids)
    before = state_of(path)
    assert compact(path).changed is False
    assert state_of(path) == before


def test_extra_arrays_come_through(path, make_header, make_clip, expected, contents):
    with CacheWriter(path, make_header(), {"mean": np.arange(4.0)}) as writer:
        for clip_id in "ab":
            writer.add(make_clip(clip_id))
            writer.commit()
    compact(path)
    with open_cache(path) as store:
        np.testing.assert_array_equal(store.extras["mean"], np.arange(4.0))
    assert contents(path) == expected("ab")


def sizes_of(path):
    """Frames of each segment."""
    with open_cache(path) as store:
        return [int(segment.offsets[-1]) for segment in store._segments]


@pytest.mark.parametrize(
    ("path", "frames", "bound", "expected_sizes"),
    [
        (".h5", [3, 3, 3, 3, 3, 3], 9, [9, 9]),
        (".h5", [3, 3, 3, 3], 7, [6, 6]),
        (".h5", [4, 4, 4], 3, [4, 4, 4]),
        (".h5", [1, 6, 1, 1, 6, 1], 10, [1, 6, 2, 6, 1]),
        (".h5", [1, 1, 6, 5, 5], 10, [2, 6, 10]),
        (".zarr", [20, 1, 1, 1], 10, [20, 3]),
    ],
    indirect=["path"],
)
def test_a_segment_grows_to_its_bound_and_one_of_more_than_half_is_left_as_it_is(
    path, frames, bound, expected_sizes, make_header, make_clip, record, contents
):
    clips = [make_clip(str(i), frames=n) for i, n in enumerate(frames)]
    with CacheWriter(path, make_header()) as writer:
        for clip in clips:
            writer.add(clip)
            writer.commit()
    large = {name for name, size in zip(segments_of(path), sizes_of(path), strict=True) if size > bound // 2}
    for changed in (expected_sizes != frames, False):
        assert compact(path, segment_bytes=bound * 4 * 2).changed is changed
        assert sizes_of(path) == expected_sizes
    if bound == 10 and 5 not in frames:
        assert large <= set(segments_of(path))
    assert list(contents(path).items()) == [(c.id, record(make_header().stored(c))) for c in clips]
    assert verify(path).sound


@pytest.mark.parametrize("segment_bytes", [1, 1 << 30])
def test_a_clip_that_two_writers_made_is_kept_once(
    tmp_path, segment_bytes, make_header, make_clip, expected, contents, plain
):
    path = tmp_path / "a.zarr"
    with CacheWriter(path, make_header()) as one, CacheWriter(path, make_header()) as other:
        for writer, ids in ((one, "abc"), (other, "cbd"), (one, "ef")):
            for clip_id in ids:
                writer.add(make_clip(clip_id))
            writer.commit()
    before = list(contents(path).items())
    compact(path, segment_bytes=segment_bytes)
    assert list(contents(path).items()) == before == list(expected(IDS).items())
    assert sorted(i for _, arrays in plain(path)[1] for i in arrays["ids"]) == list(IDS)


def test_memory_does_not_hold_a_whole_segment_while_segments_are_joined(path, make_header, make_clip, monkeypatch):
    """No read asks for more than a piece of it."""
    monkeypatch.setattr("cache.containers.sealed_file._COPY_BYTES", 800)
    monkeypatch.setattr("cache.containers.zarr_group.REWRITTEN_SHARD_BYTES", 800)
    monkeypatch.setattr("cache.containers.zarr_group.CHUNK_BYTES", 100)
    monkeypatch.setattr("cache.gather.RUN_BYTES", 800)
    with CacheWriter(path, make_header()) as writer:
        for i in range(4):
            writer.add(make_clip(str(i), frames=90))
            writer.commit()
    kind, asked = type(open_container(path)), []
    write = kind.write_segment
    if path.suffix == ".zarr":
        monkeypatch.setattr(kind, "write_segment", lambda self, segment, _=0: write(self, segment, 800))
    read = kind.read_into

    def counted(self, segment, array, starts, outs):
        asked.append(sum(out.nbytes for out in outs))
        read(self, segment, array, starts, outs)

    monkeypatch.setattr(kind, "read_into", counted)
    compact(path)
    assert max(asked) <= 1200  # VAD of a clip of 90 frames, which is verified in one piece
    assert verify(path).sound


@pytest.mark.parametrize("stride", [31, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_killed_at_any_step_it_leaves_the_old_or_the_new_and_the_next_finishes_the_job(
    three, stride, dies, copied, beside, expected, contents, faults
):
    run = three.with_stem("run")
    for step in itertools.count(1, stride):
        if not dies(step, compact, copied(three, run)):
            break
        faults.survived(expected(IDS), contents(run))
        assert list(contents(run)) == list(IDS)
        assert verify(run).sound
        compact(run)
        faults.survived(expected(IDS), contents(run))
        assert_one_segment_and_nothing_else(run)
        assert run.suffix == ".zarr" or beside(run) == []
        assert compact(run).changed is False
    assert step > 5


def assert_one_segment_and_nothing_else(path):
    (name,) = segments_of(path)
    if path.suffix == ".h5":
        return
    assert [p.name for p in (path / "segments").iterdir() if p.is_dir()] == [name]
    assert [p for p in path.rglob("*.partial") if "segments" in p.parts] == []
    assert open_container(path).leftovers() == (0, 0)


@pytest.mark.parametrize("more", ["", "g"])
def test_what_a_killed_compaction_replaced_never_counts_again(
    tmp_path, more, fork, exit_code, make_cache, expected, contents
):
    """Killed after the commit: the new segment and the old ones are there, and no block is."""
    path = make_cache(tmp_path / "a.zarr", IDS, per_segment=2)

    def die_after_the_commit():
        zarr_group.GroupMetadata = lambda: os._exit(9)
        compact(path)

    assert exit_code(fork(die_after_the_commit)) == 9
    assert len(list(path.glob("segments/*/zarr.json"))) == 4
    with open_cache(path) as store:
        assert (len(store.segments), len(store)) == (1, 6)
    make_cache(path, more)
    compact(path)
    assert contents(path) == expected([*IDS, *more])
    assert_one_segment_and_nothing_else(path)


def test_damage_is_refused_and_left_for_repair(three, spoil, state_of):
    spoil(three, "d")
    before = state_of(three)
    with pytest.raises(DamagedCacheError, match="is damaged, and was left as it is; `emi cache verify"):
        compact(three)
    assert state_of(three) == before


def test_compacting_is_refused_while_a_writer_is_open(three, make_header, make_clip, state_of, expected, contents):
    with CacheWriter(three, make_header()) as writer:
        before = state_of(three)
        with pytest.raises(CacheLockedError, match="being written by another process"):
            compact(three)
        assert state_of(three) == before
        writer.add(make_clip("new"))
    assert contents(three) == expected([*IDS, "new"])
    compact(three)
    assert contents(three) == expected([*IDS, "new"])


def test_a_writer_and_another_compaction_are_refused_while_it_is_at_work(three, make_header):
    messages = []

    def try_others(*_):
        for other in (lambda: CacheWriter(three, make_header()), lambda: compact(three)):
            with pytest.raises(CacheLockedError) as caught:
                other()
            messages.append(str(caught.value))

    compact(three, try_others)
    assert len(messages) == 6
    with CacheWriter(three, make_header()):
        pass  # it let go of the cache


def test_a_reader_from_before_goes_on_or_is_told_to_open_again(three, expected, record):
    with open_cache(three) as store:
        compact(three)
        if three.suffix == ".h5":
            assert {i: record(store[i]) for i in store} == expected(IDS)
            store.close()
        for read in (lambda: store["d"], lambda: store.load(IDS)):
            with pytest.raises(DamagedCacheError, match=r"is gone: the cache was compacted or repaired.*open it again"):
                read()


def test_a_reader_that_opens_its_file_anew_finds_a_segment_where_it_is_now(tmp_path, make_header, make_clip, record):
    """In HDF5 a segment that is left as it is lies elsewhere in the new file."""
    path = tmp_path / "a.h5"
    with CacheWriter(path, make_header()) as writer:
        for clip_id, frames in (("a", 2), ("b", 2), ("large", 500)):
            writer.add(make_clip(clip_id, frames=frames))
            writer.commit()
    with open_cache(path) as store:
        assert compact(path, segment_bytes=100 * 8).segments == (3, 2)
        store.close()  # as a process does to which the reader is sent
        assert record(store["large"]) == record(make_header().stored(make_clip("large", frames=500)))


def test_what_killed_writers_left_is_removed(tmp_path, make_cache, dies, expected, contents):
    path = make_cache(tmp_path / "a.zarr", "a")
    assert dies(9, make_cache, path, "b")
    assert open_container(path).leftovers()[0] == 1
    assert compact(path).changed
    assert_one_segment_and_nothing_else(path)
    assert contents(path) == expected("a")


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_disk_too_full_to_compact_on_costs_nothing(
    tiny_disk, suffix, make_header, make_clip, record, contents, faults
):
    path, ballast = tiny_disk / f"a{suffix}", tiny_disk / "ballast"
    clips = [make_clip(name, frames=25_000) for name in ("one", "other")]
    with CacheWriter(path, make_header()) as writer:
        for clip in clips:
            writer.add(clip)
            writer.commit()
    before = {clip.id: record(make_header().stored(clip)) for clip in clips}
    ballast.write_bytes(bytes(2_900_000))
    with pytest.raises(CacheWriteError, match=r"committed before is intact; make room"):
        compact(path)
    faults.count("full disks")
    faults.survived(before, contents(path))
    assert len(segments_of(path)) == 2
    ballast.unlink()
    assert compact(path).segments == (2, 1)
    assert list(contents(path).items()) == list(before.items())
    assert_one_segment_and_nothing_else(path)
    assert [p.name for p in tiny_disk.iterdir()] == [path.name]


def test_a_block_that_cannot_be_written_is_no_failure(path, make_cache, monkeypatch, expected, contents):
    make_cache(path, IDS, per_segment=1)

    def refused(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(open_container(path)), "write_block", refused)
        assert compact(path, segment_bytes=10 * 8).changed
    assert contents(path) == expected(IDS)
    assert verify(path).sound


def test_a_cache_behind_a_url_is_compacted_too(make_cache, expected, contents):
    url = "memory://tests/compact.zarr"
    make_cache(url, IDS, per_segment=2)
    assert compact(url).segments == (3, 1)
    assert contents(url) == expected(IDS)
    assert verify(url).sound


@pytest.fixture
def stopped(make_header, make_clip):
    """Commit a clip to an HDF5 cache that is not sealed then."""

    def stopped(path, clip_id):
        with contextlib.suppress(KeyboardInterrupt), CacheWriter(path, make_header()) as writer:
            writer.add(make_clip(clip_id))
            raise KeyboardInterrupt
        return path

    return stopped


@pytest.mark.parametrize("mend", [compact, repair])
def test_what_a_compaction_left_that_was_killed_after_the_new_file_had_its_name_is_removed(
    tmp_path, mend, fork, exit_code, make_cache, make_header, make_clip, stopped, beside, expected, contents
):
    path = stopped(make_cache(tmp_path / "a.h5", "ab"), "c")

    def die_before_the_folder_goes():
        Hdf5Container._remove_folder = lambda _: os._exit(9)
        compact(path)

    assert exit_code(fork(die_before_the_folder_goes)) == 9
    assert contents(path) == expected("abc")
    with pytest.warns(UserWarning, match="put aside"), CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("d"))
    assert [place.name.startswith("a.h5.stopped-") for place in beside(path)] == [True]
    assert mend(path).changed
    assert beside(path) == []
    assert contents(path) == expected("abcd")
    assert not mend(path).changed


@pytest.mark.parametrize("mend", [compact, repair])
def test_a_folder_that_was_put_aside_with_clips_of_its_own_is_kept(
    tmp_path, mend, make_cache, stopped, beside, expected, contents
):
    path = stopped(make_cache(tmp_path / "a.h5", "ab"), "c")
    path.write_bytes(make_cache(tmp_path / "b.h5", "ad").read_bytes())
    with pytest.warns(UserWarning, match="put aside"):
        mend(path)
    mend(path)
    (aside,) = tmp_path.glob("a.h5.stopped-*.zarr")
    assert contents(aside) == expected("c")
    assert contents(path) == expected("ad")


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1", "1e-10", "1e300"])
def test_compact_takes_a_size_that_is_one(three, size):
    commands = typer.Typer()
    commands.command()(cache_compact.compact)
    result = CliRunner().invoke(commands, [str(three), f"--segment-gb={size}"])
    assert isinstance(result.exception, EmiError)  # which the command line prints, and exits with 2
    assert re.fullmatch(rf"--segment-gb .*, got {re.escape(str(float(size)))}", str(result.exception))


def test_a_stray_file_in_the_index_does_not_stop_a_compaction(tmp_path, make_cache, expected, contents):
    path = make_cache(tmp_path / "a.zarr", "abcde", per_segment=2)
    (path / "index" / ".DS_Store").write_bytes(b"x")
    assert compact(path).segments == (3, 1)
    assert contents(path) == expected("abcde")
