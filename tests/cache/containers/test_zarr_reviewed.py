"""What a hostile review found: one segment without a block, strays, creations cut off, locks and children."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cache import CacheWriter, DamagedCacheError, open_cache
from cache.containers.by_suffix import open_container
from cache.derive.derived import derive
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify

IDS = ("a", "b", "c", "d", "e")


@pytest.fixture(params=["written", "compacted"])
def one_segment(request, tmp_path, make_cache):
    """A Zarr cache of one segment."""
    path = make_cache(tmp_path / "a.zarr", IDS, per_segment=5 if request.param == "written" else 2)
    if request.param == "compacted":
        compact(path)
    assert len(list(path.glob("segments/0*"))) == 1
    return path


@pytest.mark.parametrize("what", ["zarr.json", ""])
def test_the_only_segment_cannot_vanish_unnoticed(one_segment, what):
    (segment,) = one_segment.glob("segments/0*")
    (segment / "zarr.json").unlink() if what else shutil.rmtree(segment)
    assert {clip.id for clip in verify(one_segment).damaged} == set(IDS)
    with pytest.raises(DamagedCacheError):
        compact(one_segment)
    assert (segment / "frames").exists() == bool(what)
    with open_cache(one_segment) as store:
        assert tuple(store.ids) == IDS
        if not what:
            with pytest.raises(DamagedCacheError):
                store.load(store.ids)


@pytest.mark.parametrize("name", ["ids", "offsets", "seconds", "checksums"])
@pytest.mark.parametrize("file", ["c/0", "zarr.json"])
def test_a_damaged_index_of_the_only_segment_loses_no_clip(one_segment, name, file, expected, contents):
    (spoiled,) = one_segment.glob(f"segments/0*/{name}/{file}")
    spoiled.write_bytes(b"\xff" + spoiled.read_bytes()[1:])
    assert not verify(one_segment).sound
    assert repair(one_segment).dropped == []
    assert contents(one_segment) == expected(IDS)
    assert verify(one_segment).sound


def test_a_stray_file_in_the_index_does_not_stop_a_compaction(tmp_path, make_cache, expected, contents):
    path = make_cache(tmp_path / "a.zarr", IDS, per_segment=2)
    (path / "index" / ".DS_Store").write_bytes(b"x")
    assert compact(path).segments == (3, 1)
    assert contents(path) == expected(IDS)


def test_a_derivation_cut_off_before_it_was_a_cache_does_not_stand_in_the_way_of_another(tmp_path, make_cache):
    source = make_cache(tmp_path / "a.zarr", IDS)
    derive(source, tmp_path / "b.zarr", pca=1, standardise=True, train_ids=IDS)
    (tmp_path / "b.zarr" / "zarr.json").unlink()
    shutil.rmtree(tmp_path / "b.zarr" / "segments")
    shutil.rmtree(tmp_path / "b.zarr" / "index")
    derive(source, tmp_path / "b.zarr", standardise=True, train_ids=IDS)
    assert verify(tmp_path / "b.zarr").sound
    with open_cache(tmp_path / "b.zarr") as store:
        assert "components" not in store.extras


def test_a_copy_into_the_other_container_keeps_the_fingerprint_of_a_derived_cache(tmp_path, make_cache):
    source = make_cache(tmp_path / "a.zarr", IDS)
    transfer([source], tmp_path / "b.zarr", dtype="float32")
    derive(tmp_path / "b.zarr", tmp_path / "c.zarr", pool=2)
    transfer([tmp_path / "c.zarr"], tmp_path / "d.h5")
    with open_cache(tmp_path / "c.zarr") as one, open_cache(tmp_path / "d.h5") as other:
        assert one.fingerprint == other.fingerprint


def test_a_child_that_outlives_the_writer_does_not_keep_its_lock(path, make_header, make_clip):
    writer = CacheWriter(path, make_header())
    writer.add(make_clip("a"))
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        with writer:
            pass
        with CacheWriter(path, make_header()) as again:
            again.add(make_clip("b"))
        compact(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_that_forgets_the_writer_does_not_open_its_lock(path, make_header, make_clip):
    writer = CacheWriter(path, make_header())
    writer.add(make_clip("a"))
    child = os.fork()
    if not child:
        writer._container.close()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(Exception, match="by another process"):
        open_container(path).lock(alone=True)
    with writer:
        pass


def test_a_file_url_is_a_path(tmp_path, make_cache, expected, contents):
    path = make_cache(tmp_path / "a b.zarr", IDS)
    with open_cache(f"file://{str(path).replace(' ', '%20')}") as store:
        assert tuple(store.ids) == IDS
        np.testing.assert_array_equal(store["a"].frames, open_cache(Path(path))["a"].frames)
