"""One copy of a split for many processes: filled once, whoever comes first, and never half."""

import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cache
from cache import CacheWriteError, CacheWriter, DamagedCacheError, open_cache
from cache.reader import FeatureCache
from cache.shared import shared_load


def test_it_holds_what_load_gives_and_cannot_be_written(filled, ids, tmp_path):
    with open_cache(filled) as store:
        loaded = shared_load(store, ids, tmp_path / "maps")
        expected, rows = store.load(ids)
    assert isinstance(loaded.rows, np.memmap)
    np.testing.assert_array_equal(loaded.rows, expected)
    np.testing.assert_array_equal(loaded.offsets, rows)
    with pytest.raises(ValueError, match="read-only"):
        loaded.rows[0] = 1


def test_the_second_call_maps_the_same_file_without_reading_the_cache(filled, ids, tmp_path, monkeypatch):
    with open_cache(filled) as store:
        first = shared_load(store, ids, tmp_path).rows
        monkeypatch.setattr(FeatureCache, "load_all", lambda *_, **__: pytest.fail("gathered again"))
        second = shared_load(store, ids, tmp_path).rows
    assert first.filename == second.filename


def test_other_clips_another_order_or_changed_bytes_have_another_file(path, ids, tmp_path, make_cache, make_header):
    make_cache(path, ids)
    make_cache(path.with_stem("other"), ids, header=make_header(layer=3))
    names = set()
    for place, wanted in ((path, ids), (path, ids[::-1]), (path, ids[1:]), (path.with_stem("other"), ids)):
        with open_cache(place) as store:
            names.add(shared_load(store, wanted, tmp_path / "maps").rows.filename)
    assert len(names) == 4


def test_many_processes_fill_it_once(filled, ids, tmp_path, fork, exit_code):
    def read(report):
        load = FeatureCache.load_all

        def counted(*arguments, **options):
            os.write(report, b"x")
            return load(*arguments, **options)

        FeatureCache.load_all = counted
        with open_cache(filled) as store:
            frames = shared_load(store, ids, tmp_path / "maps").rows
            FeatureCache.load_all = load
            assert frames.tobytes() == store.load(ids)[0].tobytes()

    counts, report = os.pipe()
    children = [fork(read, report) for _ in range(6)]
    assert [exit_code(child) for child in children] == [0] * 6
    os.close(report)
    assert os.read(counts, 100) == b"x"


def test_a_killed_filler_neither_blocks_nor_poisons_the_next(filled, ids, tmp_path, fork, exit_code):
    def die(*_, out, **__):
        out[: len(out) // 2] = 7
        os.kill(os.getpid(), signal.SIGKILL)

    def fill_and_die():
        FeatureCache.load_all = die
        with open_cache(filled) as store:
            shared_load(store, ids, tmp_path / "maps")

    assert exit_code(fork(fill_and_die)) == -signal.SIGKILL
    with open_cache(filled) as store:
        frames = shared_load(store, ids, tmp_path / "maps").rows
        assert frames.tobytes() == store.load(ids)[0].tobytes()
    assert Path(frames.filename).parent == (tmp_path / "maps").resolve()


def test_what_a_killed_filler_left_is_gone_after_the_next(filled, ids, tmp_path, fork, exit_code, faults):
    folder = tmp_path / "maps"

    def fill_and_die():
        FeatureCache.load_all = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        with open_cache(filled) as store:
            shared_load(store, ids, folder)

    for _ in range(3):
        assert exit_code(fork(fill_and_die)) == -signal.SIGKILL
        faults.count("kills")
    assert len(list(folder.iterdir())) == 2  # one half file and its lock, not one for each
    with open_cache(filled) as store:
        shared_load(store, ids, folder)
    assert sorted(p.suffix for p in folder.iterdir()) == [".lock", ".npy"]


def test_the_others_wait_while_one_fills(filled, ids, tmp_path, fork, exit_code):
    began, go = os.pipe(), os.pipe()

    def fill_slowly():
        load = FeatureCache.load_all

        def slow(*arguments, **options):
            os.write(began[1], b"x")
            os.read(go[0], 1)
            return load(*arguments, **options)

        FeatureCache.load_all = slow
        with open_cache(filled) as store:
            shared_load(store, ids, tmp_path / "maps")

    filler = fork(fill_slowly)
    os.read(began[0], 1)
    waiting = threading.Thread(target=lambda: found.append(shared_load(store, ids, tmp_path / "maps").rows.tobytes()))
    found = []
    with open_cache(filled) as store:
        waiting.start()
        waiting.join(0.2)
        assert (waiting.is_alive(), found) == (True, [])
        os.write(go[1], b"x")
        waiting.join()
        assert exit_code(filler) == 0
        assert found == [store.load(ids)[0].tobytes()]


def test_spawned_processes_share_it_too(filled, ids, tmp_path):
    with open_cache(filled) as store:
        pickled, rows = pickle.dumps((store, ids, str(tmp_path / "maps"))).hex(), store.load(ids)[0].tobytes().hex()
    program = (
        "import pickle, sys; from cache.shared import shared_load\n"
        "print(shared_load(*pickle.loads(bytes.fromhex(sys.argv[1]))).rows.tobytes().hex())"
    )
    command = [sys.executable, "-c", program, pickled]
    folder = Path(cache.__file__).parents[1]
    children = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate()[0].strip() for child in children] == [rows] * 3
    assert len(list((tmp_path / "maps").glob("*.npy"))) == 1


def test_a_damaged_clip_leaves_no_file(copy, ids, tmp_path, spoil):
    spoil(copy, ids[1])
    with open_cache(copy) as store, pytest.raises(DamagedCacheError, match=re.escape(repr(ids[1]))):
        shared_load(store, ids, tmp_path / "maps")
    assert [p.suffix for p in (tmp_path / "maps").iterdir()] == [".lock"]


def test_no_clips_are_an_empty_array(filled, tmp_path):
    with open_cache(filled) as store:
        for _ in range(2):
            loaded = shared_load(store, [], tmp_path)
            assert (loaded.rows.shape, loaded.offsets.tolist()) == ((0, 7), [0])


def test_a_folder_that_is_too_full_is_an_error_and_does_not_kill_the_process(
    tiny_disk, tmp_path, make_cache, make_header, make_clip, fork, exit_code, faults
):
    """Docker gives /dev/shm 64 MB, and a write into a map beyond that is a bus error."""
    with CacheWriter(tmp_path / "a.h5", make_header()) as writer:
        writer.add(make_clip("large", frames=400_000))

    def load():
        with open_cache(tmp_path / "a.h5") as store, pytest.raises(CacheWriteError, match="No space left"):
            shared_load(store, ["large"], tiny_disk / "maps")

    assert exit_code(fork(load)) == 0
    faults.count("full disks")
    assert [p.suffix for p in (tiny_disk / "maps").iterdir()] == [".lock"]


def flip_header(content):
    return content[:9] + bytes([content[9] ^ 1]) + content[10:]


def flip_last_number(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def flip_tail(content):
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE = {
    "empty": lambda content: content[:0],
    "four zeros": lambda content: bytes(len(content[:4])),
    "truncated": lambda content: content[:-20],
    "in its header": flip_header,
    "in its numbers": flip_last_number,
    "in its checksum": flip_tail,
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shared_file_that_is_damaged_is_made_anew(filled, ids, tmp_path, damage):
    with open_cache(filled) as store:
        expected, _ = store.load(ids)
        first = shared_load(store, ids, tmp_path).rows
        file = tmp_path / first.filename
        content = file.read_bytes()
        file.unlink()  # whoever has it mapped keeps it
        file.write_bytes(DAMAGE[damage](content))
        again = shared_load(store, ids, tmp_path).rows
        np.testing.assert_array_equal(again, expected)
        np.testing.assert_array_equal(np.load(file), expected)
        np.testing.assert_array_equal(first, expected)


def test_a_shared_file_that_is_a_link_or_another_users_is_made_anew(filled, ids, tmp_path, monkeypatch):
    elsewhere, others = tmp_path / "elsewhere.npy", os.geteuid() + 1
    with open_cache(filled) as store:
        expected, _ = store.load(ids)
        file = tmp_path / shared_load(store, ids, tmp_path).rows.filename
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
        np.testing.assert_array_equal(shared_load(store, ids, tmp_path).rows, expected)
        assert not file.is_symlink()
        planted = file.with_name(file.name.replace(f"-{os.geteuid()}-", f"-{others}-"))
        elsewhere.rename(planted)
        before = planted.stat().st_ino
        monkeypatch.setattr(os, "geteuid", lambda: others)
        np.testing.assert_array_equal(shared_load(store, ids, tmp_path).rows, expected)
        assert planted.stat().st_ino != before


def test_users_who_share_a_folder_have_private_files_of_their_own(filled, ids, tmp_path, monkeypatch):
    with open_cache(filled) as store:
        shared_load(store, ids, tmp_path)
        first = {file.name for file in tmp_path.iterdir()}
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        shared_load(store, ids, tmp_path)
    second = {file.name for file in tmp_path.iterdir()} - first
    assert len(first) == len(second) == 2
    assert all("-12345-" in name for name in second)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_place_that_cannot_be_a_folder_is_told_in_a_sentence(filled, ids, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with open_cache(filled) as store, pytest.raises(CacheWriteError, match="could not be written"):
        shared_load(store, ids, tmp_path / "file" / "maps")
