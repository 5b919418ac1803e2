"""A reader crosses processes, names what it misses, and never gets in a writer's way."""

import builtins
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import cache
from cache import CacheWriter, UnknownClipError, open_cache


def test_a_reader_survives_pickling(filled, ids, expected, record):
    with open_cache(filled) as store:
        store[ids[0]]
        with pickle.loads(pickle.dumps(store)) as copy:
            assert {i: record(copy[i]) for i in copy} == expected(ids)
            assert (copy.header, copy.path) == (store.header, store.path)


def test_a_closed_reader_opens_again_by_itself(filled, ids, expected, record):
    store = open_cache(filled)
    store.close()
    store.close()
    assert record(store[ids[0]]) == expected(ids)[ids[0]]
    store.close()


def test_a_reader_goes_on_after_a_fork_in_parent_and_child(filled, ids, expected, record, fork, exit_code):
    """What a PyTorch DataLoader does with its workers."""
    with open_cache(filled) as store:
        store[ids[0]]

        def read():
            assert {i: record(store[i]) for i in ids} == expected(ids)

        child = fork(read)
        read()
        assert exit_code(child) == 0
        read()


def test_a_reader_works_in_a_spawned_process(tmp_path, make_cache):
    with open_cache(make_cache(tmp_path / "a.zarr", "ab")) as a, open_cache(make_cache(tmp_path / "a.h5", "ab")) as b:
        rows = a.load("ab")[0]
        pickled = pickle.dumps([a, b]).hex()
    program = (
        "import pickle, sys\nfor s in pickle.loads(bytes.fromhex(sys.argv[1])): print(s.load('ab')[0].tobytes().hex())"
    )
    command = [sys.executable, "-c", program, pickled]
    done = subprocess.run(command, cwd=Path(cache.__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.split() == [rows.tobytes().hex()] * 2, done.stderr


def test_an_unknown_clip_is_a_key_error_that_suggests_the_nearest(filled):
    with open_cache(filled) as store:
        for read in (lambda: store["train/0001"], lambda: store.load(["z", "train/0001"])):
            with pytest.raises(KeyError) as caught:
                read()
            assert isinstance(caught.value, UnknownClipError)
            assert "no clip 'train/0001' (it holds 6); the nearest id is 'train/00001'" in str(caught.value)
        with pytest.raises(UnknownClipError, match=r"no clip 'qqq' \(it holds 6\)$"):
            store["qqq"]


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("CacheNotFoundError", "FileNotFoundError"),
        ("CacheFormatError", "ValueError"),
        ("StaleCacheError", "ValueError"),
        ("DamagedCacheError", "OSError"),
        ("CacheLockedError", "BlockingIOError"),
        ("CacheWriteError", "OSError"),
        ("UnknownClipError", "KeyError"),
    ],
)
def test_every_error_is_the_builtin_that_a_caller_would_catch(error, builtin):
    kind = getattr(cache, error)
    assert issubclass(kind, (cache.CacheError, cache.EmiError))
    assert issubclass(kind, getattr(builtins, builtin))
    assert str(kind("one sentence")) == "one sentence"
    assert str(pickle.loads(pickle.dumps(kind("one sentence")))) == "one sentence"


def test_a_reader_keeps_the_view_of_when_it_was_opened(copy, ids, make_cache, expected, record):
    with open_cache(copy) as store:
        make_cache(copy, ["new"])
        assert list(store) == ids
        assert {i: record(store[i]) for i in store} == expected(ids)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_second_reader_sees_what_was_committed_since_the_first_was_opened(
    tmp_path, suffix, make_cache, expected, contents
):
    path = make_cache(tmp_path / f"a{suffix}", "a")
    with open_cache(path) as first:
        first["a"]
        make_cache(path, "b")
        assert contents(path) == expected("ab")


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_writer_knows_what_was_committed_since_a_reader_was_opened(tmp_path, suffix, make_header, make_cache):
    path = make_cache(tmp_path / f"a{suffix}", "a")
    with open_cache(path):
        make_cache(path, "b")
        with CacheWriter(path, make_header()) as writer:
            assert list(writer.done) == ["a", "b"]


def test_a_cache_without_the_right_to_write_is_readable(filled, ids, expected, contents, fork, exit_code):
    def refuse(event, arguments):
        if event == "open" and str(filled) in str(arguments[0]) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(f"{arguments[0]} may not be written")

    def read():
        sys.addaudithook(refuse)
        assert contents(filled) == expected(ids)

    assert exit_code(fork(read)) == 0


def test_a_reader_that_is_not_closed_raises_no_warning(filled, ids):
    store = open_cache(filled)
    store[ids[0]]
    del store
