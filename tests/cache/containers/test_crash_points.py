"""Dead at every step of a commit in turn: before each write to the disk, and in the middle of it."""

import itertools
import shutil
import threading

import pytest
import zarr
import zarr.errors

from cache import CacheWriter, open_cache


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


def test_a_reader_does_not_wait_for_a_writer(path, make_header):
    with CacheWriter(path, make_header()):
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
