"""Files that somebody else put into a cache are no segments: they are never removed, and not called unfinished."""

import pytest

from cache import CacheWriter, open_cache
from cache.containers.container import segment_name
from cache.maintenance.remove import remove
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.verify import verify

IDS = "abcdef"
STRAYS = (
    "mine/notes.txt",
    "segments/mydata/notes.txt",
    "segments/mygroup/zarr.json",
    "segments/.ipynb_checkpoints/x-checkpoint.py",
    "segments/notes.partial",
    "index/mydata/notes.txt",
    "index/mydata/c/0",
)


@pytest.fixture
def with_strays():
    def with_strays(folder):
        for name in STRAYS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("precious")
        return folder

    return with_strays


@pytest.fixture
def strays_of():
    def strays_of(folder):
        return [name for name in STRAYS if (folder / name).is_file() and (folder / name).read_text() == "precious"]

    return strays_of


@pytest.mark.parametrize("step", ["compact", "remove", "repair"])
def test_they_stay_in_a_cache_that_is_rewritten(tmp_path, step, make_cache, with_strays, strays_of, spoil, contents):
    path = with_strays(make_cache(tmp_path / "a.zarr", IDS, per_segment=2))
    (path / "segments" / segment_name()).mkdir()
    partial = path / "segments" / f"zarr.{'0a' * 16}.partial"
    partial.touch()
    if step == "repair":
        spoil(path, "b")
        assert repair(path).changed
    elif step == "remove":
        assert remove(path, ["b"]).removed == ["b"]
    else:
        assert compact(path).segments == (3, 1)
    assert strays_of(path) == list(STRAYS)
    assert not partial.exists()
    assert verify(path).leftovers == (0, 0)
    assert list(contents(path)) == [i for i in IDS if i != "b" or step == "compact"]


def test_they_are_neither_damage_nor_unfinished_segments(tmp_path, make_cache, with_strays):
    path = with_strays(make_cache(tmp_path / "a.zarr", IDS, per_segment=6))
    report = verify(path)
    assert report.sound
    assert (report.segments, report.leftovers) == (1, (0, 0))
    assert not compact(path).changed
    with open_cache(path) as store:
        assert list(store) == list(IDS)


def test_they_are_kept_beside_an_hdf5_file_where_the_folder_of_unfinished_work_goes(
    tmp_path, make_header, make_clip, folder_of, beside, with_strays, strays_of, contents
):
    path = tmp_path / "a.h5"
    with CacheWriter(path, make_header()) as writer:
        writer.add(make_clip("a"))
        with_strays(folder_of(path))
    (kept,) = beside(path)
    assert kept.name.startswith("a.h5.strays-")
    assert strays_of(kept) == list(STRAYS)
    assert [p.name for p in kept.glob("segments/0*")] == []
    assert list(contents(path)) == ["a"]


@pytest.mark.parametrize("mend", [compact, repair])
def test_a_folder_that_was_put_aside_stays_with_them(tmp_path, mend, make_cache):
    path = make_cache(tmp_path / "a.h5", "ab")
    notes = make_cache(tmp_path / "a.h5.stopped-1.zarr", "a") / "notes.txt"
    notes.write_text("precious")
    assert not mend(path).changed
    assert notes.read_text() == "precious"
