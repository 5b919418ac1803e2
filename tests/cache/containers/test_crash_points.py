"""Dead at every step of a commit in turn: before each write to the disk, and in the middle of it."""

import itertools
import os
import shutil
import threading

import pytest
import zarr
import zarr.errors

from cache import CacheError, CacheWriteError, CacheWriter, open_cache


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_at_any_step_of_a_commit_leaves_the_old_or_the_new(
    path, stride, dies, make_cache, expected, contents, copied, faults
):
    make_cache(path, "a")
    run, found = path.with_stem("run"), []
    for number, step in enumerate(itertools.count(1, stride)):
        if not dies(step, make_cache, copied(path, run), "bc"):
            break
        if number % 2:
            found.append("".join(contents(run)))
            faults.survived(expected(found[-1]), contents(run))
            assert found[-1] in ("a", "abc")
        else:  # a writer is the first to open it
            make_cache(run, "d")
            kept = "".join(contents(run))
            assert kept in ("ad", "abcd")
            make_cache(run, sorted(set("bc") - set(kept)))
            assert contents(run) == expected("abcd")
    assert step > 10
    assert found == sorted(found)  # never back
    assert list(contents(run)) == list("abc")


def test_a_crash_at_any_step_of_making_a_cache_lets_the_same_command_carry_on(
    path, dies, make_cache, expected, contents, copied
):
    step = 0
    run = path.with_stem("run")
    while dies(step := step + 1, make_cache, run, []):
        make_cache(run, "a")
        assert contents(run) == expected("a")
        copied(path, run)
    assert step > 1
    assert contents(run) == {}


@pytest.fixture
def cut_off(tmp_path, make_cache, fork, exit_code, copied):
    """An HDF5 cache whose last commit was cut off while its journal was applied: half of it is in the file."""
    base, run = make_cache(tmp_path / "base.h5", "ab"), tmp_path / "cut.h5"
    journal, pwrite = run.with_name("cut.h5.journal"), os.pwrite

    def die_half_way(descriptor, data, offset):
        if journal.exists():
            pwrite(descriptor, data[: len(data) // 2], offset)
            os._exit(9)
        return pwrite(descriptor, data, offset)

    def cut_off_commit():
        os.pwrite = die_half_way
        make_cache(copied(base, run), "cd")

    assert exit_code(fork(cut_off_commit)) == 9
    assert journal.exists()
    return run


def test_a_reader_completes_a_commit_that_was_cut_off(cut_off, expected, contents):
    assert contents(cut_off) == expected("abcd")
    assert contents(cut_off) == expected("abcd")


def test_a_crash_at_any_step_of_completing_a_cut_off_commit_does_no_harm(
    cut_off, dies, make_cache, expected, contents, copied, faults
):
    run, step = cut_off.with_stem("run"), 0
    while dies(step := step + 1, make_cache, copied(cut_off, run), []):
        if step % 2:
            assert contents(run) == expected("abcd")
        make_cache(run, "e")
        faults.survived(expected("abcde"), contents(run))
    assert step > 3


def test_a_damaged_journal_is_refused(cut_off, contents):
    journal = cut_off.with_name("cut.h5.journal")
    sound = journal.read_bytes()
    for damaged in [
        b"",
        sound[:10],
        sound[:-1],
        *(sound[:i] + b"~" + sound[i + 1 :] for i in range(0, len(sound), 401)),
    ]:
        journal.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"journal is damaged"):
            contents(cut_off)
    journal.write_bytes(sound)
    assert "".join(contents(cut_off)) == "abcd"


def test_a_journal_left_by_a_deleted_cache_does_not_touch_its_successor(cut_off, make_cache, expected, contents):
    cut_off.unlink()
    make_cache(cut_off, "xyz")
    assert contents(cut_off) == expected("xyz")


def test_a_reader_needs_no_right_to_write_to_see_a_cut_off_commit(cut_off, expected, contents):
    before = {p: p.read_bytes() for p in cut_off.parent.glob("cut.h5*")}
    assert contents(cut_off) == expected("abcd")
    assert {p: p.read_bytes() for p in cut_off.parent.glob("cut.h5*")} == before


@pytest.fixture
def failing(tmp_path, make_cache, make_header, make_clip, monkeypatch):
    """A live HDF5 writer whose last commit failed while its journal was applied."""
    path = make_cache(tmp_path / "a.h5", "ab")
    real = os.pwrite

    def pwrite(*arguments):
        if path.with_name("a.h5.journal").exists():
            raise OSError(5, "Input/output error")
        return real(*arguments)

    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("c"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            with pytest.raises(CacheWriteError, match="Input/output error"):
                writer.commit()
        yield path, writer


def test_a_writer_goes_on_after_a_failure_to_apply_its_journal(failing, make_clip, expected, contents):
    path, writer = failing
    for name in "cd":
        writer.add(make_clip(name))
        writer.commit()
    assert contents(path) == expected("abcd")


def test_a_reader_does_not_wait_for_a_writer(failing):
    path, _ = failing
    reader = threading.Thread(target=lambda: open_cache(path).close(), daemon=True)
    reader.start()
    reader.join(1)
    assert not reader.is_alive()


def test_a_zarr_segment_without_its_group_metadata_was_never_committed(tmp_path, make_cache, expected, contents):
    path = make_cache(tmp_path / "a.zarr", "ab", per_segment=1)
    last = max(p for p in (path / "segments").iterdir() if p.is_dir())
    (last / "zarr.json").unlink()
    shutil.rmtree(path / "index")  # which no crash writes over a segment that is not committed
    assert contents(path) == expected("a")
    with pytest.warns(zarr.errors.ZarrUserWarning, match=last.name):  # which plain zarr passes over, too
        assert last.name not in zarr.open_group(path, mode="r")["segments"].group_keys()
    make_cache(path, "bc")
    assert contents(path) == expected("abc")
