"""A medium that changes under the same id is named, and extracted again with `refresh`."""

import os
import shutil

import numpy as np
import pytest

import emi
from cache import open_cache
from cache.derive.derived import derive
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify
from cache.sources import Medium, content_digest, medium_of
from cache.writer import CacheWriter
from extract.plan import plan
from extract.settings import ExtractSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory, media):
    """Four clips and their caches, before one of them changes."""
    root = tmp_path_factory.mktemp("made")
    (root / "clips").mkdir()
    for name in "abcd":
        media.write(root / "clips" / f"{name}.wav", media.speech(0.4, ord(name)))
    for suffix in (".zarr", ".h5"):
        emi.extract(root / "clips", root / f"f{suffix}")
    return root


@pytest.fixture(params=[".zarr", ".h5"])
def place(request, made, tmp_path):
    """(clips, cache), of which the second clip was replaced by a longer one."""
    shutil.copytree(made / "clips", tmp_path / "clips")
    cache = tmp_path / f"f{request.param}"
    (shutil.copytree if request.param == ".zarr" else shutil.copy)(made / f"f{request.param}", cache)
    return tmp_path / "clips", cache


def replace(folder, media, name="b", seconds=0.9, seed=7):
    media.write(folder / f"{name}.wav", media.speech(seconds, seed))


def frames(cache):
    with open_cache(cache) as store:
        return {name: store[name].frames.tobytes() for name in store.ids}


def test_a_changed_medium_is_named_and_its_clip_is_kept(place, media):
    clips, cache = place
    before = frames(cache)
    replace(clips, media)
    summary = emi.extract(clips, cache)
    assert (summary.changed, summary.written, summary.present) == (["b"], 0, 4)
    assert frames(cache) == before


def test_refresh_extracts_only_changed_clips(place, media, tmp_path):
    clips, cache = place
    replace(clips, media)
    summary = emi.extract(clips, cache, refresh=True)
    assert (summary.changed, summary.written, summary.present) == ([], 1, 3)
    emi.extract(clips, tmp_path / "new.zarr")
    assert frames(cache) == frames(tmp_path / "new.zarr")
    assert emi.extract(clips, cache, refresh=True).written == 0
    assert emi.extract(clips, cache).changed == []


def test_the_newest_of_several_refreshes_is_kept_by_maintenance(place, media, tmp_path):
    clips, cache = place
    for seed in (1, 2):
        replace(clips, media, seconds=0.5, seed=seed)
        emi.extract(clips, cache, refresh=True)
    emi.extract(clips, tmp_path / "new.zarr")
    expected = frames(tmp_path / "new.zarr")
    assert frames(cache) == expected
    assert verify(cache).sound
    transfer([cache], tmp_path / "copy.h5")
    assert compact(cache).segments == (3, 1)
    repair(cache)
    for each in (cache, tmp_path / "copy.h5"):
        assert frames(each) == expected
        assert emi.extract(clips, each).changed == []


def test_a_compacted_cache_in_parts_keeps_the_refreshed_clip(place, media):
    clips, cache = place
    replace(clips, media, seconds=0.5)
    emi.extract(clips, cache, refresh=True)
    expected = frames(cache)
    compact(cache, segment_bytes=1)
    assert frames(cache) == expected


def test_a_refresh_that_fails_leaves_the_old_clip(place, media, monkeypatch):
    clips, cache = place
    before = frames(cache)
    replace(clips, media)

    def fail(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "commit", fail)
        with pytest.raises(KeyboardInterrupt):
            emi.extract(clips, cache, refresh=True)
    assert frames(cache) == before
    assert emi.extract(clips, cache, refresh=True).written == 1


def test_a_changed_medium_that_cannot_be_read_leaves_the_old_clip(place):
    clips, cache = place
    before = frames(cache)
    (clips / "b.wav").write_bytes(b"no sound" * 100)
    summary = emi.extract(clips, cache, refresh=True)
    assert [failure.id for failure in summary.failures] == ["b"]
    assert frames(cache) == before


def test_a_touched_copied_or_missing_medium_counts_as_unchanged(place):
    clips, cache = place
    os.utime(clips / "a.wav", (1, 1))
    (clips / "b.wav").unlink()
    assert emi.extract(clips, cache).changed == []


def test_a_medium_of_the_same_size_with_other_content_has_changed(place, media):
    clips, cache = place
    replace(clips, media, seconds=0.4)
    assert emi.extract(clips, cache).changed == ["b"]


def test_processes_refresh_too(made, media, tmp_path, monkeypatch):
    shutil.copytree(made / "clips", tmp_path / "clips")
    shutil.copytree(made / "f.zarr", tmp_path / "f.zarr")
    replace(tmp_path / "clips", media)
    planned = plan(tmp_path / "clips", tmp_path / "f.zarr", ExtractSettings(refresh=True))
    assert (planned.todo, planned.refresh) == (1, {"b"})
    assert [share.todo for share in (planned.share(0, 2), planned.share(1, 2))] == [1, 0]


def test_an_older_cache_without_media_records_reports_no_changes(tmp_path, media, made):
    shutil.copytree(made / "clips", tmp_path / "clips")
    with open_cache(made / "f.zarr") as store, CacheWriter(tmp_path / "old.zarr", store.header) as writer:
        for name in store.ids:
            writer.add(store[name])
    replace(tmp_path / "clips", media)
    summary = emi.extract(tmp_path / "clips", tmp_path / "old.zarr", refresh=True)
    assert (summary.changed, summary.written) == ([], 0)
    with open_cache(tmp_path / "old.zarr") as store:
        assert store.medium("a") is None
    assert not list((tmp_path / "old.zarr").rglob("sources"))
    transfer([tmp_path / "old.zarr"], tmp_path / "both.zarr")
    (tmp_path / "clips" / "e.wav").write_bytes((tmp_path / "clips" / "a.wav").read_bytes())
    emi.extract(tmp_path / "clips", tmp_path / "both.zarr")
    compact(tmp_path / "both.zarr")
    with open_cache(tmp_path / "both.zarr") as store:
        assert store.medium("a") is None
        assert store.medium("e") == medium_of(tmp_path / "clips" / "e.wav")


def test_derived_caches_keep_their_media_records_and_refuse_others(tmp_path, media, made):
    shutil.copytree(made / "clips", tmp_path / "clips")
    shutil.copytree(made / "f.zarr", tmp_path / "f.zarr")
    derive(tmp_path / "f.zarr", tmp_path / "small.zarr", pool=2)
    with open_cache(tmp_path / "small.zarr") as small, open_cache(tmp_path / "f.zarr") as store:
        assert small.medium("b") == store.medium("b") is not None
    replace(tmp_path / "clips", media, seconds=0.4)
    emi.extract(tmp_path / "clips", tmp_path / "f.zarr", refresh=True)
    with pytest.raises(emi.EmiError, match=r"1 clip .*b.* other media"):
        derive(tmp_path / "f.zarr", tmp_path / "small.zarr", pool=2)
    transfer([tmp_path / "f.zarr"], tmp_path / "g.zarr")
    with pytest.raises(emi.EmiError, match=r"1 clip .*b.* other media"):
        transfer([made / "f.zarr"], tmp_path / "g.zarr")


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_flipped_byte_in_the_media_records_is_found_and_repaired(tmp_path, made, suffix):
    cache = tmp_path / f"f{suffix}"
    (shutil.copytree if suffix == ".zarr" else shutil.copy)(made / f"f{suffix}", cache)
    with open_cache(cache) as store:
        digest = store.medium("c").digest.to_bytes(8, "little", signed=True)
    files = [path for path in cache.rglob("*") if path.is_file()] if suffix == ".zarr" else [cache]
    (damaged,) = [path for path in files if digest in path.read_bytes()]
    content = bytearray(damaged.read_bytes())
    content[content.index(digest)] ^= 1
    damaged.write_bytes(content)
    before = frames(cache)
    assert {clip.id for clip in verify(cache).damaged} == set("abcd")
    with pytest.raises(emi.EmiError, match=r"emi cache repair"), open_cache(cache) as store:
        store.medium("c")
    assert repair(cache).dropped == []
    assert verify(cache).sound
    assert frames(cache) == before


def test_the_hash_of_a_large_file_sees_its_two_ends(tmp_path):
    path = tmp_path / "film.mp4"
    content = bytearray(5 << 20)
    path.write_bytes(content)
    before = medium_of(path)
    assert before == Medium(len(content), path.stat().st_mtime_ns, content_digest(path, len(content)))
    for at in (10, len(content) - 10):
        changed = content.copy()
        changed[at] = 1
        path.write_bytes(changed)
        os.utime(path, (1, 1))
        assert before.changed(path)
    assert medium_of(tmp_path / "none.mp4") is None
    assert not before.changed(tmp_path / "none.mp4")
    assert np.int64(before.digest) == before.digest
