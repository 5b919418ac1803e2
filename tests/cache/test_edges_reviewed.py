"""What comes to the edges of a cache is kept as it was, or refused in a sentence that names it."""

import os
import re
import stat

import numpy as np
import pytest
import typer
from numpy.lib.stride_tricks import as_strided
from typer.testing import CliRunner

from cache import CacheFormatError, CacheWriteError, CacheWriter, Clip, EmiError, open_cache
from cache.exchange.exporting import export
from cache.exchange.feature_files import MAX_BYTES, FeatureFileError, read_frames
from cache.exchange.importing import import_features
from cache.exchange.selection import ExportError, read_manifest
from cache.shared import shared_load
from emi.cli.cache import compact as cache_compact
from emi.cli.cache import derive as cache_derive

VAD = np.full((2, 3), 0.5, np.float32)
FRAMES = np.full((2, 4), 0.25, np.float32)
OVERFLOW = np.finfo(np.float16).max.astype(np.float32) + 16
"""The smallest float32 that NumPy rounds to a float16 of infinity (65504 has an ulp of 32)."""


def clip(frames=FRAMES, vad=VAD, pooled=VAD[0]) -> Clip:
    return Clip("loud", frames, vad, pooled, 0.04)


def test_vad_that_overflows_where_heads_get_it_rounded_is_refused_by_name(make_header):
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(OVERFLOW))
        assert np.isfinite(np.float16(np.nextafter(OVERFLOW, np.float32(0))))
    with pytest.raises(CacheFormatError, match=r"clip 'loud': its vad overflows float16, .*--dtype float32"):
        make_header().stored(clip(vad=np.full((2, 3), OVERFLOW)))
    make_header().stored(clip(vad=np.full((2, 3), np.nextafter(OVERFLOW, np.float32(0)))))
    stored = make_header(dtype="float32").stored(clip(vad=np.full((2, 3), OVERFLOW)))
    assert (stored.joined()[:, 4:] == OVERFLOW).all()


@pytest.mark.parametrize("part", ["vad", "pooled"])
def test_vad_that_overflows_float32_is_refused_in_any_cache(make_header, part):
    shape = (2, 3) if part == "vad" else 3
    with pytest.raises(CacheFormatError, match="clip 'loud': its vad or vad_pooled is not finite"):
        make_header(dtype="float32").stored(clip(**{part: np.full(shape, 1e300)}))


def test_frames_that_overflow_float32_are_told_so(make_header):
    with pytest.raises(CacheFormatError, match=r"clip 'loud': its features overflow float32$"):
        make_header(dtype="float32").stored(clip(frames=np.full((2, 4), 1e300)))


@pytest.mark.parametrize("dtype", ["complex64", "object", "U4", "S4", "V2", "M8[s]"])
@pytest.mark.parametrize("part", ["frames", "vad", "pooled"])
def test_what_is_no_real_number_is_refused_by_name(make_header, part, dtype):
    array = np.zeros({"frames": (2, 4), "vad": (2, 3), "pooled": 3}[part], dtype)
    with pytest.raises(CacheFormatError, match=rf"clip 'loud': its (vad_)?{part} holds .*expected real numbers"):
        make_header().stored(clip(**{part: array}))


def rows_of(store, ids):
    return int(store.offsets(ids)[-1]), store.dim + len(store.vad_names)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "uint8", "bool", "complex64", "object"])
def test_an_out_that_is_not_of_floats_is_refused(filled, ids, dtype):
    with open_cache(filled) as store, pytest.raises(ValueError, match="give a float array at least as wide"):
        store.load(ids, out=np.zeros(rows_of(store, ids), dtype))


def test_an_out_narrower_than_the_cache_is_refused_and_a_wider_one_filled(path, ids, make_cache, make_header):
    make_cache(path, ids, header=make_header(dtype="float32"))
    with open_cache(path) as store:
        shape, (rows, _) = rows_of(store, ids), store.load(ids)
        with pytest.raises(ValueError, match="out has dtype float16, and the cache float32"):
            store.load(ids, out=np.zeros(shape, np.float16))
        for wide in (">f4", "f8"):
            np.testing.assert_array_equal(store.load(ids, out=np.zeros(shape, wide))[0], rows)


def shared_rows(rows, columns):
    return as_strided(np.zeros(columns, np.float32), (rows, columns), (0, 4))


def staggered_rows(rows, columns):
    return as_strided(np.zeros(rows + columns, np.float32), (rows, columns), (4, 4))


def half_elements(rows, columns):
    return as_strided(np.zeros(rows * columns, np.float32), (rows, columns), (2 * columns, 2))


@pytest.mark.parametrize("make", [shared_rows, staggered_rows, half_elements])
def test_an_out_that_overlaps_itself_is_refused(filled, ids, make):
    with open_cache(filled) as store, pytest.raises(ValueError, match="out overlaps itself in memory"):
        store.load(ids, out=make(*rows_of(store, ids)))


def test_an_out_that_runs_backwards_or_is_a_part_of_another_is_filled(filled, ids):
    with open_cache(filled) as store:
        (rows, columns), (expected, _) = rows_of(store, ids), store.load(ids)
        for out in (
            np.zeros((rows, columns), np.float16)[::-1, ::-1],
            np.zeros((columns, 3 * rows), np.float16).T[::3],
            np.zeros((rows, columns, 2), np.float16)[..., 1],
        ):
            np.testing.assert_array_equal(store.load(ids, out=out)[0], expected)


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
        first, _ = shared_load(store, ids, tmp_path)
        file = tmp_path / first.filename
        content = file.read_bytes()
        file.unlink()  # whoever has it mapped keeps it
        file.write_bytes(DAMAGE[damage](content))
        again, _ = shared_load(store, ids, tmp_path)
        np.testing.assert_array_equal(again, expected)
        np.testing.assert_array_equal(np.load(file), expected)
        np.testing.assert_array_equal(first, expected)


def test_a_shared_file_that_is_a_link_or_another_users_is_made_anew(filled, ids, tmp_path, monkeypatch):
    elsewhere, others = tmp_path / "elsewhere.npy", os.geteuid() + 1
    with open_cache(filled) as store:
        expected, _ = store.load(ids)
        file = tmp_path / shared_load(store, ids, tmp_path)[0].filename
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
        np.testing.assert_array_equal(shared_load(store, ids, tmp_path)[0], expected)
        assert not file.is_symlink()
        planted = file.with_name(file.name.replace(f"-{os.geteuid()}-", f"-{others}-"))
        elsewhere.rename(planted)
        before = planted.stat().st_ino
        monkeypatch.setattr(os, "geteuid", lambda: others)
        np.testing.assert_array_equal(shared_load(store, ids, tmp_path)[0], expected)
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


def app(module):
    commands = typer.Typer()
    commands.command()(module.compact if module is cache_compact else module.derive)
    return commands


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1", "1e-10", "1e300"])
def test_compact_takes_a_size_that_is_one(three, size):
    result = CliRunner().invoke(app(cache_compact), [str(three), f"--segment-gb={size}"])
    assert isinstance(result.exception, EmiError)  # which the command line prints, and exits with 2
    assert re.fullmatch(rf"--segment-gb .*, got {re.escape(str(float(size)))}", str(result.exception))


@pytest.mark.parametrize("pool", [1 << 31, 1 << 63, 1 << 80])
def test_derive_takes_no_window_that_numpy_cannot_count(filled, tmp_path, pool):
    target = tmp_path / "small.h5"
    result = CliRunner().invoke(app(cache_derive), [str(filled), str(target), f"--pool={pool}"])
    assert isinstance(result.exception, EmiError)
    assert str(result.exception) == f"--pool takes 1 to 2147483647 frames, got {pool}"
    assert not target.exists()


def test_the_longest_window_is_the_mean_of_each_clip(filled, tmp_path):
    target = tmp_path / "small.h5"
    assert CliRunner().invoke(app(cache_derive), [str(filled), str(target), "--pool=2147483647"]).exit_code == 0
    with open_cache(filled) as store, open_cache(target) as small:
        for clip_id in store:
            mean = store[clip_id].frames.astype(np.float32).mean(0, keepdims=True).astype(np.float16)
            np.testing.assert_array_equal(small[clip_id].frames, mean)


@pytest.mark.parametrize("suffix", [".npy", ".pkl"])
def test_a_sparse_file_of_many_gigabytes_is_not_read(tmp_path, suffix, monkeypatch):
    file = tmp_path / f"bomb{suffix}"
    with file.open("wb") as opened:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 10)}
        np.lib.format.write_array_header_1_0(opened, header)
        opened.truncate(opened.tell() + (4 << 30))
    monkeypatch.setattr("cache.exchange.feature_files.READERS", {suffix: lambda _: pytest.fail("was read")})
    with pytest.raises(FeatureFileError, match=f"one clip takes at most {MAX_BYTES}"):
        read_frames(file)


@pytest.fixture
def clips(tmp_path, make_header):
    """Make a cache of clips without VAD."""

    def make(*ids):
        with CacheWriter(tmp_path / "clips.h5", make_header(vad=False)) as writer:
            for number, clip_id in enumerate(ids):
                writer.add(Clip(clip_id, np.full((2, 4), number, np.float16), None, None, 0.04))
        return open_cache(tmp_path / "clips.h5")

    return make


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


IDS = ["007", "00007", "7", ".hidden", ".folder/a", "a.npy", "a.npz", "b.c", "日本/語", "..."]


def test_what_is_exported_and_imported_has_its_ids_and_numbers(tmp_path, path, clips):
    with clips(*IDS) as store:
        export(store, tmp_path / "out", "npz")
        summary = import_features(tmp_path / "out", path, hop_seconds=0.02)
        assert (summary.written, summary.failures) == (len(IDS), [])
        with open_cache(path) as copy:
            assert set(copy) == set(IDS)
            for clip_id in IDS:
                np.testing.assert_array_equal(copy[clip_id].frames, store[clip_id].frames)


def test_names_in_a_folder_that_is_no_export_are_padded_and_hidden_files_passed_over(tmp_path, path, clips):
    with clips("7", ".hidden") as store:
        export(store, tmp_path / "out", "npz")
    (tmp_path / "out" / "export.json").write_text('{"format": "another"}')
    import_features(tmp_path / "out", path, hop_seconds=0.02)
    with open_cache(path) as copy:
        assert list(copy) == ["00007"]


def test_the_arrays_of_an_npy_export_are_not_taken_for_clips(tmp_path, path, clips):
    with clips("a", "b") as store:
        export(store, tmp_path / "out", "npy")
    assert read_manifest(tmp_path / "out", "npy")["clips"] == 2
    with pytest.raises(FeatureFileError, match="export of the kind 'npy', without a file for each clip"):
        import_features(tmp_path / "out", path, hop_seconds=0.02)
    assert not path.exists()
