"""A journal that an earlier version, killed in the middle of a commit, left beside an HDF5 cache.

`old_journal/cut.h5` holds the clips a and b; its journal, not yet applied, commits c and d (written at 12941d2).
"""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from cache import CacheError
from cache.maintenance.verify import verify

DATA = Path(__file__).parent / "old_journal" / "cut.h5"


def journal_of(path):
    return path.with_name(f"{path.name}.journal")


@pytest.fixture
def cut_off(tmp_path, copied):
    return copied(DATA, tmp_path / "cut.h5")


def parts(path):
    """Sizes of the file with and without the commit, and what the commit changes: (offset, old, new)."""
    record = journal_of(path).read_bytes()
    _, _, head_size = struct.unpack_from("<8sII", record)
    size, end, _, ranges = json.loads(record[16 : 16 + head_size])
    changes, at = [], 16 + head_size
    for offset, count in ranges:
        changes.append((offset, record[at : at + count], record[at + count : at + 2 * count]))
        at += 2 * count
    return size, end, changes


@pytest.fixture
def steps(cut_off):
    """The file that was cut off, the same completed, and the offsets of the bytes that differ."""
    old = np.frombuffer(cut_off.read_bytes(), np.uint8)
    new = old.copy()
    for offset, _, data in parts(cut_off)[2]:
        new[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
    return old, new, np.flatnonzero(old != new)


@pytest.fixture
def usable(make_cache, expected, contents):
    def usable(path, ids):
        """Read, check and fill a cache whose journal belongs to something else."""
        assert contents(path) == expected(ids)
        assert verify(path).sound
        make_cache(path, "z")
        assert contents(path) == expected(f"{ids}z")
        assert not journal_of(path).exists()

    return usable


def test_a_reader_completes_a_commit_that_was_cut_off(cut_off, expected, contents):
    for _ in range(2):
        assert contents(cut_off) == expected("abcd")
    assert verify(cut_off).sound


def test_a_reader_needs_no_right_to_write_to_see_a_cut_off_commit(cut_off, expected, contents):
    before = {p: p.read_bytes() for p in cut_off.parent.iterdir()}
    assert contents(cut_off) == expected("abcd")
    assert {p: p.read_bytes() for p in cut_off.parent.iterdir()} == before


def test_a_run_with_nothing_to_do_writes_the_file_anew(cut_off, make_cache, expected, plainly):
    make_cache(cut_off, "")
    assert plainly(cut_off) == expected("abcd")
    assert not journal_of(cut_off).exists()


def test_a_commit_is_completed_wherever_applying_it_was_cut_off(
    cut_off, steps, make_cache, expected, contents, plainly, copied
):
    """In order, as one process writes, and in any, as a disk does whose power fails."""
    (old, new, differ), order, run = steps, random.Random(0), cut_off.with_stem("run")
    in_order = [differ[:count] for count in range(0, len(differ) + 1, max(1, len(differ) // 20))]
    by_chance = [order.sample(differ.tolist(), count) for count in range(1, len(differ), max(1, len(differ) // 6))]
    for applied in [*in_order, differ[:1], differ[-1:], differ, *by_chance]:
        half = old.copy()
        half[applied] = new[applied]
        copied(cut_off, run).write_bytes(half.tobytes())
        assert contents(run) == expected("abcd")
        make_cache(run, "e")
        assert contents(run) == plainly(run) == expected("abcde")
        assert not journal_of(run).exists()


def test_a_half_applied_commit_is_completed_though_a_clip_of_it_was_damaged(cut_off, steps, make_cache, spoil):
    old, new, differ = steps
    half = old.copy()
    half[differ[: len(differ) // 2]] = new[differ[: len(differ) // 2]]
    cut_off.write_bytes(half.tobytes())
    spoil(cut_off, "c")
    for ids in ("", "e"):
        make_cache(cut_off, ids)
        assert [clip.id for clip in verify(cut_off).damaged] == ["c"]


def test_a_copy_restored_over_a_cut_off_commit_is_read_and_written(cut_off, usable):
    _, end, _ = parts(cut_off)
    cut_off.write_bytes(cut_off.read_bytes()[:end])
    usable(cut_off, "ab")


def test_another_cache_moved_over_a_cut_off_commit_is_read_and_written(cut_off, make_cache, usable):
    make_cache(cut_off.with_stem("other"), "uvwxy").replace(cut_off)
    usable(cut_off, "uvwxy")


def test_a_journal_is_not_applied_over_the_remains_of_another_attempt(cut_off, usable):
    size, end, _ = parts(cut_off)
    content = cut_off.read_bytes()
    assert len(content) == size
    cut_off.write_bytes(content[:end] + content[end:][::-1])
    usable(cut_off, "ab")


def test_a_journal_left_by_a_deleted_cache_does_not_touch_its_successor(cut_off, make_cache, expected, contents):
    cut_off.unlink()
    make_cache(cut_off, "xyz")
    assert contents(cut_off) == expected("xyz")


def test_a_crash_at_any_step_of_sealing_over_a_cut_off_commit_does_no_harm(
    cut_off, dies, make_cache, expected, contents, copied, faults
):
    run, step = cut_off.with_stem("run"), 0
    while dies(step := step + 3, make_cache, copied(cut_off, run), "e"):
        if step % 2:
            faults.survived(expected("abcd"), contents(run))
        if "e" not in contents(run):
            make_cache(run, "e")
        faults.survived(expected("abcde"), contents(run))
    assert step > 30


def test_a_damaged_journal_is_refused(cut_off, contents):
    journal = journal_of(cut_off)
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
