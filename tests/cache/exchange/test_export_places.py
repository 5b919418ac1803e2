"""What lies where an export should go is completed, left alone or refused; a failed export leaves nothing."""

import os
import shutil
import sys

import numpy as np
import pytest

from cache import CacheWriteError, CacheWriter, Clip, DamagedCacheError, UnknownClipError, open_cache
from cache.exchange.exporting import KINDS, ExportDependencyError, export
from cache.exchange.selection import ExportError, ExportExistsError

SOME = ["z", "train/00001"]
ONE = pytest.mark.parametrize("filled", [".h5"], indirect=True)
"""One container will do where the other could make no difference."""


@pytest.fixture
def one(filled):
    with open_cache(filled) as opened:
        yield opened


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def out(tmp_path):
    return tmp_path / "folder" / "out"


def read_npz(out):
    """Every clip of a folder, by id."""
    clips = {}
    for file in out.rglob("*.npz"):
        clip_id = file.relative_to(out).as_posix().removesuffix(".npz")
        with np.load(file) as arrays:
            clips[clip_id] = Clip(
                clip_id, arrays["frames"], arrays["vad"], arrays["vad_pooled"], float(arrays["seconds"])
            )
    return clips


def state_of(place):
    files = [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]
    return [(p, p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in files]


@ONE
def test_the_same_export_again_is_nothing_to_do(one, kind, out):
    export(one, out, kind)
    before = state_of(out)
    summary = export(one, out, kind)
    assert (summary.written, summary.present) == (0, len(one))
    assert state_of(out) == before


@ONE
def test_nothing_but_the_export_is_left_behind(one, kind, out):
    export(one, out, kind)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert not [path for path in out.rglob("*") if "partial" in path.name or path.name == "scratch"]


def foreign_file(out):
    out.write_text("mine")


def foreign_folder(out):
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def foreign_manifest(out):
    out.mkdir()
    (out / "export.json").write_text('{"format": "another"}')


def dangling_link(out):
    out.symlink_to(out.parent / "nowhere")


@ONE
@pytest.mark.parametrize("make", [foreign_file, foreign_folder, foreign_manifest, dangling_link])
def test_what_is_no_export_is_left_as_it_was(filled, kind, out, make):
    out.parent.mkdir()
    make(out)
    with open_cache(filled) as store, pytest.raises(ExportExistsError, match="no export of a cache"):
        export(store, out, kind)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    if out.is_file():
        assert out.read_text() == "mine"


@ONE
def test_the_working_folder_can_be_the_place(one, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert export(one, ".", "npy").written == len(one)
    assert (tmp_path / "empty" / "frames.npy").is_file()


@ONE
def test_an_empty_folder_is_filled(filled, kind, out):
    out.mkdir(parents=True)
    with open_cache(filled) as store:
        if kind == "parquet":
            with pytest.raises(ExportExistsError):
                export(store, out, kind)
        else:
            assert export(store, out, kind).written == len(store)


def other_cache(tmp_path, make_cache, make_header, ids, **fingerprint):
    return open_cache(make_cache(tmp_path / "other.h5", ids, header=make_header(**fingerprint)))


@ONE
def test_an_export_of_another_cache_is_refused_by_name(filled, kind, out, tmp_path, make_cache, make_header, ids):
    with open_cache(filled) as store:
        export(store, out, kind)
    before = state_of(out)
    with (
        other_cache(tmp_path, make_cache, make_header, ids, layer=9) as other,
        pytest.raises(ExportExistsError, match=r"layer \(stored 12, wanted 9\)"),
    ):
        export(other, out, kind)
    assert state_of(out) == before


@ONE
def test_an_export_of_another_kind_is_refused(filled, out):
    with open_cache(filled) as store:
        export(store, out, "npz")
        with pytest.raises(ExportExistsError, match=r"kind \(there npz, wanted npy\)"):
            export(store, out, "npy")


@ONE
@pytest.mark.parametrize("kind", ["npy", "parquet", "datasets"])
def test_an_export_of_other_clips_is_refused(filled, kind, out):
    with open_cache(filled) as store:
        export(store, out, kind)
        with pytest.raises(ExportExistsError, match=r"clips \(there 6, wanted 2\)"):
            export(store, out, kind, SOME)
        with pytest.raises(ExportExistsError, match="content_crc32c"):
            export(store, out, kind, store.ids[::-1])


def changed(clip):
    return Clip(clip.id, clip.frames + 1, clip.vad, clip.vad_pooled, clip.seconds)


@ONE
def test_equal_ids_and_settings_with_other_numbers_are_not_the_same(
    filled, kind, out, tmp_path, make_header, make_clip, ids
):
    with open_cache(filled) as store:
        export(store, out, kind)
    with CacheWriter(tmp_path / "other.zarr", make_header()) as writer:
        for clip_id in ids:
            writer.add(changed(make_clip(clip_id)))
    with open_cache(tmp_path / "other.zarr") as store, pytest.raises(ExportExistsError):
        export(store, out, kind)


@ONE
def test_npz_goes_on_where_it_stopped_and_takes_later_clips(filled, out, record):
    def stop(done, total, seconds):
        if done == 3:
            raise KeyboardInterrupt

    with open_cache(filled) as store:
        with pytest.raises(KeyboardInterrupt):
            export(store, out, "npz", store.ids[:5], on_progress=stop)
        assert len(list(out.rglob("*.npz"))) == 3
        summary = export(store, out, "npz")
        assert (summary.written, summary.present) == (3, 3)
        assert {i: record(clip) for i, clip in read_npz(out).items()} == {i: record(store[i]) for i in store}


@ONE
@pytest.mark.parametrize("kind", ["npy", "parquet", "datasets"])
def test_an_interrupted_export_leaves_nothing(filled, kind, out):
    def stop(*_):
        raise KeyboardInterrupt

    with open_cache(filled) as store:
        with pytest.raises(KeyboardInterrupt):
            export(store, out, kind, on_progress=stop)
        assert list(out.parent.iterdir()) == []
        assert export(store, out, kind).written == len(store)


@ONE
def test_a_file_that_a_crash_cut_short_is_written_again(filled, out, record):
    with open_cache(filled) as store:
        export(store, out, "npz")
        for clip_id, keep in zip(SOME, (0, 100), strict=True):
            file = out / f"{clip_id}.npz"
            file.write_bytes(file.read_bytes()[:keep])
        summary = export(store, out, "npz")
        assert (summary.written, summary.present) == (2, 4)
        assert {i: record(clip) for i, clip in read_npz(out).items()} == {i: record(store[i]) for i in store}


@pytest.mark.parametrize(
    "clip_id", ["../out", "..", "/etc/x", "a/../../b", "a//b", "a/", ".", "./a", "a\\..\\b", "\\\\host\\x"]
)
def test_an_id_that_would_leave_the_folder_is_refused_before_anything_is_written(tmp_path, out, make_cache, clip_id):
    path = make_cache(tmp_path / "c.h5", ["a", clip_id])
    with open_cache(path) as store:
        with pytest.raises(ExportError, match="inside the folder"):
            export(store, out, "npz")
        assert not out.exists()
        assert export(store, out, "npz", ["a"]).written == 1


def test_dots_in_an_id_are_part_of_the_name(tmp_path, out, make_cache):
    ids = ["a.b", "a.b.c", "...", "..a/b..", ".hidden"]
    with open_cache(make_cache(tmp_path / "c.h5", ids)) as store:
        export(store, out, "npz")
        assert read_npz(out).keys() == set(ids)


@ONE
def test_wrong_requests_are_named(filled, kind, out):
    with open_cache(filled) as store:
        with pytest.raises(ExportError, match="--to must be one of npz, npy, parquet, datasets, got 'csv'"):
            export(store, out, "csv")
        with pytest.raises(ExportError, match="'z' is to be exported twice"):
            export(store, out, kind, ["z", "train/00001", "z"])
        with pytest.raises(UnknownClipError, match="no clip 'zz'"):
            export(store, out, kind, ["z", "zz"])
        with pytest.raises(ExportError, match="no clips to export"):
            export(store, out, kind, [])
    assert not out.exists()


def test_damage_in_the_cache_is_no_export(copy, kind, out):
    files = [copy] if copy.is_file() else sorted(copy.glob("segments/*/frames/c/**/*"))
    for file in files:
        if file.is_file():
            content = bytearray(file.read_bytes())
            with open_cache(copy) as store:
                at = content.find(store["z"].frames.tobytes()) if copy.is_file() else 0
            content[at] ^= 1
            file.write_bytes(content)
    with open_cache(copy) as store, pytest.raises(DamagedCacheError):
        export(store, out, kind)
    if kind == "npz":
        assert not (out / "z.npz").exists()
    else:
        assert list(out.parent.iterdir()) == []


@ONE
def test_where_nothing_can_be_written_that_is_said(filled, kind, tmp_path):
    (tmp_path / "file").write_text("mine")
    with open_cache(filled) as store, pytest.raises(CacheWriteError, match="could not be written"):
        export(store, tmp_path / "file" / "out", kind)


@ONE
@pytest.mark.parametrize("kind", ["npy", "parquet", "datasets"])
def test_a_full_disk_leaves_nothing_and_is_said(filled, kind, out, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with open_cache(filled) as store, pytest.raises(CacheWriteError, match="No space left"):
        export(store, out, kind)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "package"), [("parquet", "pyarrow"), ("datasets", "pyarrow"), ("datasets", "datasets")]
)
def test_a_missing_package_is_named_with_what_installs_it(filled, out, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with open_cache(filled) as store:
        with pytest.raises(ExportDependencyError, match=rf"{package}.*pip install 'emi-mimicry\[arrow\]'"):
            export(store, out, kind)
        assert not out.exists()
        assert export(store, out, "npz").written


@ONE
def test_no_bars_of_datasets_are_shown(filled, out, capfd):
    with open_cache(filled) as store:
        export(store, out, "datasets")
    assert "examples" not in capfd.readouterr().err


@ONE
def test_a_copied_export_is_still_the_same(filled, kind, out, tmp_path):
    with open_cache(filled) as store:
        export(store, out, kind)
        moved = shutil.move(out, tmp_path / "moved")
        assert export(store, moved, kind).present == len(store)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "a.npz/b"], r"clip 'a.npz/b' needs a folder a.npz, where the export has clip 'a'"),
        (["a.npz/b/c", "a"], r"clip 'a.npz/b/c' needs a folder a.npz"),
        (["export.json/a"], r"clip 'export.json/a' needs a folder export.json, where the export has its manifest"),
        (["x" * 252], r"clip 'x{80}'… needs a file name of 256 bytes, and a file system takes 255"),
        (["y/" + "é" * 126], r"needs a file name of 256 bytes"),
    ],
)
def test_ids_that_cannot_be_files_side_by_side_are_named_before_anything_is_written(tmp_path, clips, ids, said):
    with clips(*ids) as store:
        with pytest.raises(ExportError, match=said):
            export(store, tmp_path / "out", "npz")
        assert not (tmp_path / "out").exists()
        assert export(store, tmp_path / "out", "npy").written == len(ids)


@pytest.mark.parametrize("order", [["a", "a.npz/b"], ["a.npz/b", "a"]])
def test_an_id_that_cannot_lie_beside_an_earlier_export_is_named(tmp_path, clips, order):
    with clips(*order) as store:
        export(store, tmp_path / "out", "npz", order[:1])
        with pytest.raises(ExportError, match=f"clip '{order[1]}' cannot have a file of its own"):
            export(store, tmp_path / "out", "npz", order[1:])


def test_a_path_that_is_too_long_as_a_whole_is_named(tmp_path, clips):
    with clips("/".join(["x" * 200] * 30)) as store, pytest.raises(ExportError, match=r"clip 'x{80}'… cannot have"):
        export(store, tmp_path / "out", "npz")


def test_an_out_below_a_file_is_no_matter_of_room_or_permission(tmp_path, clips):
    (tmp_path / "file").write_bytes(b"")
    with clips("a") as store, pytest.raises(CacheWriteError, match="choose another OUT") as raised:
        export(store, tmp_path / "file" / "out", "npz")
    assert "make room" not in str(raised.value)
