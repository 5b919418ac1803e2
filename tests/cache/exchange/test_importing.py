"""Features that others computed come into a cache as they are, never stale, and never run."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import CacheFormatError, CacheWriter, StaleCacheError, open_cache
from cache.exchange.feature_files import MAX_BYTES, FeatureFileError, Reading, find_features, read_features
from cache.exchange.importing import import_features

DIM = 4


def frames_of(number: int, dtype: str = "float32", dim: int = DIM) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.normal(size=(1 + number % 5, dim)).astype(dtype)


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(array, **kwargs))
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, frames=array)
    return path


@pytest.fixture
def folder(tmp_path):
    """Features as Hume-Vidmimic2 lays them out, and what may lie among them."""
    root = tmp_path / "vit"
    for number in range(6):
        save(root / f"{number:05d}.pkl", frames_of(number), protocol=number)
    (root / "Thumbs.db").write_bytes(b"thumbs")
    (root / ".00009.pkl").write_bytes(b"hidden")
    save(root / ".cache" / "00010.pkl", frames_of(10))
    return root


def filled(path) -> dict[str, np.ndarray]:
    with open_cache(path) as store:
        return {clip_id: store[clip_id].frames for clip_id in store}


def bits(array: np.ndarray) -> tuple:
    return str(array.dtype), array.shape, array.tobytes()


def test_a_folder_of_pickles_becomes_a_cache(folder, path):
    summary = import_features(folder, path, hop_seconds=1 / 6)
    assert (summary.written, summary.present, summary.failures) == (6, 0, [])
    clips = filled(path)
    assert list(clips) == [f"{number:05d}" for number in range(6)]
    for number in range(6):
        assert bits(clips[f"{number:05d}"]) == bits(frames_of(number).astype(np.float16))
    with open_cache(path) as store:
        assert (store.dim, store.vad_names, store.hop_seconds) == (DIM, (), 1 / 6)
        assert store.fingerprint == {"backbone": "import:vit", "hop_seconds": 1 / 6, "dtype": "float16"}
        assert store.seconds.tolist() == [len(frames_of(number)) * (1 / 6) for number in range(6)]
        assert store.header.provenance["source"] == str(folder)


def test_every_kind_of_file_in_any_folder_keeps_its_bits_in_float32(tmp_path, path):
    root = tmp_path / "features"
    array = frames_of(4)
    save(root / "7.pkl", array)
    save(root / "train" / "7.npy", array).rename(root / "train" / "7.NPY")
    save(root / "train" / "a.b.npz", np.asfortranarray(array))
    save(root / "日本" / "語.npy", array.astype(">f4"))
    np.savez_compressed(root / "one.npz", anything=array)
    np.savez(root / "several.npz", mask=np.zeros(3), frames=array)
    for version in ((1, 0), (2, 0), (3, 0)):
        with (root / f"v{version[0]}.npy").open("wb") as file:
            np.lib.format.write_array(file, array, version=version)
    summary = import_features(root, path, name="mine", hop_seconds=0.02, dtype="float32")
    assert summary.failures == []
    clips = filled(path)
    names = ["00007", "one", "several", "train/7", "train/a.b", "v1", "v2", "v3", "日本/語"]
    assert list(clips) == names
    assert {bits(frames) for frames in clips.values()} == {bits(array)}
    with open_cache(path) as store:
        assert store.fingerprint == {"backbone": "import:mine", "hop_seconds": 0.02, "dtype": "float32"}


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint16", "int64", "bool"])
def test_any_numbers_are_stored_as_asked_for(tmp_path, path, dtype):
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    save(tmp_path / "in" / "a.npy", array)
    import_features(tmp_path / "in", path, hop_seconds=0.02)
    assert bits(filled(path)["a"]) == bits(array.astype(np.float16))


def test_a_second_run_compares_and_a_later_file_is_added(folder, path):
    import_features(folder, path, hop_seconds=0.02)
    save(folder / "sub" / "new.npy", frames_of(8))
    save(folder / "00001.pkl", frames_of(1), protocol=0)  # the same numbers, other bytes
    summary = import_features(folder, path, hop_seconds=0.02)
    assert (summary.written, summary.present) == (1, 6)
    summary = import_features(folder, path, hop_seconds=0.02)
    assert (summary.written, summary.present) == (0, 7)


def test_a_file_that_is_gone_leaves_its_clip(folder, path):
    import_features(folder, path, hop_seconds=0.02)
    (folder / "00003.pkl").unlink()
    assert import_features(folder, path, hop_seconds=0.02).present == 5
    assert len(filled(path)) == 6


def test_files_that_changed_are_refused_before_anything_is_written(folder, path):
    import_features(folder, path, hop_seconds=0.02)
    before = filled(path)
    save(folder / "new.pkl", frames_of(9))
    save(folder / "00000.pkl", frames_of(0) + 1e-2)
    save(folder / "00001.pkl", frames_of(3))  # another length
    save(folder / "00002.pkl", frames_of(2, dim=5))
    save(folder / "00003.pkl", frames_of(3) * np.nan)
    for number in (4, 5):
        save(folder / f"{number:05d}.pkl", -frames_of(number))
    with pytest.raises(StaleCacheError, match=r"6 files .*00000, 00001, 00002, 00003, 00004, …"):
        import_features(folder, path, hop_seconds=0.02)
    assert {k: bits(v) for k, v in filled(path).items()} == {k: bits(v) for k, v in before.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop_seconds": 0.04}, r"hop_seconds \(stored 0.02, wanted 0.04\)"),
        ({"name": "other"}, r"backbone \(stored import:vit, wanted import:other\)"),
        ({"dtype": "float32"}, r"dtype \(stored float16, wanted float32\)"),
    ],
)
def test_another_hop_name_or_dtype_is_another_cache(folder, path, change, message):
    import_features(folder, path, hop_seconds=0.02)
    with pytest.raises(StaleCacheError, match=message):
        import_features(folder, path, **{"hop_seconds": 0.02} | change)


def test_extracted_and_imported_features_do_not_mix(folder, path, make_cache):
    make_cache(path, ["a"])
    with pytest.raises(StaleCacheError, match="backbone"):
        import_features(folder, path, hop_seconds=0.02)


def test_an_interrupted_import_goes_on_and_equals_an_uninterrupted_one(folder, path, tmp_path):
    def stop(done, total, seconds):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_features(folder, path, hop_seconds=0.02, on_progress=stop)
    assert list(filled(path)) == ["00000", "00001", "00002"]
    assert import_features(folder, path, hop_seconds=0.02).written == 3
    whole = tmp_path / f"whole{path.suffix}"
    import_features(folder, whole, hop_seconds=0.02)
    assert {k: bits(v) for k, v in filled(path).items()} == {k: bits(v) for k, v in filled(whole).items()}


def test_progress_counts_every_file_once(folder, path):
    (folder / "bad.npy").write_bytes(b"")
    seen = []
    import_features(folder, path, hop_seconds=0.5, on_progress=lambda *numbers: seen.append(numbers))
    assert [done for done, _, _ in seen] == list(range(1, 8))
    assert {total for _, total, _ in seen} == {7}
    assert seen[0][2] == 0.5
    assert seen[-1][2] == 0


def bad_files(folder):
    """A file for each reason why features cannot be imported."""
    canary = folder / "canary"
    array = frames_of(1)
    bad = {
        "empty.pkl": b"",
        "code.pkl": b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(canary),
        "objects.npy": None,
        "cut.npy": None,
        "text.npz": b"not a zip",
    }
    for name, content in bad.items():
        if content is not None:
            (folder / name).write_bytes(content)
    np.save(folder / "objects.npy", np.array([[None]]), allow_pickle=True)
    save(folder / "cut.npy", array)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-1])
    save(folder / "vector.pkl", array[0])
    save(folder / "cube.npy", array[None])
    save(folder / "none.npz", array[:0])
    save(folder / "wide.npy", frames_of(1, dim=5))
    save(folder / "nan.pkl", np.full((2, DIM), np.nan, np.float32))
    save(folder / "large.pkl", np.full((2, DIM), 1e6, np.float32))
    save(folder / "words.npy", np.array([["a"] * DIM]))
    save(folder / "complex.npy", array + 1j)
    np.savez(folder / "two.npz", a=array, b=array)
    np.savez(folder / "object.npz", frames=np.array([[None]]))
    os.symlink(folder / "nowhere", folder / "link.npy")
    os.mkfifo(folder / "fifo.npy")
    return canary


REASONS = {
    "code": "asks for os.system",
    "complex": "holds complex64, expected numbers",
    "cube": r"shape \(1, 2, 4\), expected \(frames, dim\)",
    "cut": "not an intact .npy file",
    "empty": r"is empty \(0 bytes\)",
    "fifo": "is not a file",
    "large": "overflow float16; use --dtype float32",
    "link": "No such file",
    "nan": "not finite",
    "none": r"shape \(0, 4\)",
    "object": "not an intact .npz file.*allow_pickle",
    "objects": "not an intact .npy file.*allow_pickle",
    "text": "not an intact .npz file",
    "two": "holds 2 arrays, expected one, or one named 'frames'",
    "vector": r"shape \(4,\)",
    "wide": r"frames have shape \(2, 5\), expected \(frames, 4\)",
    "words": "holds <U1, expected numbers",
}


def test_files_that_cannot_be_imported_are_listed_and_the_others_go_on(folder, path):
    canary = bad_files(folder)
    for _ in "again":
        summary = import_features(folder, path, hop_seconds=0.02)
        assert summary.written + summary.present == 6
        failures = {failure.id: failure for failure in summary.failures}
        assert failures.keys() == REASONS.keys()
        for name, reason in REASONS.items():
            with pytest.raises(AssertionError, match=reason):
                raise AssertionError(failures[name].reason)
            assert str(folder) not in failures[name].reason
            assert failures[name].path.startswith(str(folder / name))
    assert not canary.exists()


def test_where_nothing_can_be_imported_no_cache_is_made(tmp_path, path):
    root = tmp_path / "in"
    save(root / "a.npy", np.full((2, 3), np.nan))
    save(root / "b.npy", np.zeros(3))
    summary = import_features(root, path, hop_seconds=0.02)
    assert [failure.id for failure in summary.failures] == ["a", "b"]
    assert not path.exists()


def test_a_file_that_cannot_be_stored_does_not_say_how_wide_frames_are(tmp_path, path):
    root = tmp_path / "in"
    save(root / "a.npy", np.full((2, 3), np.nan))
    save(root / "b.npy", frames_of(2))
    assert import_features(root, path, hop_seconds=0.02).written == 1
    assert filled(path)["b"].shape[1] == DIM


def test_two_files_of_one_clip_are_named(folder, path):
    save(folder / "3.npy", frames_of(3))
    with pytest.raises(FeatureFileError, match=r"00003\.pkl and .*3\.npy are both clip '00003'"):
        import_features(folder, path, hop_seconds=0.02)
    assert not path.exists()


@pytest.mark.parametrize("hop", [0, -1, float("nan"), float("inf")])
def test_a_hop_that_is_none_is_refused(folder, path, hop):
    with pytest.raises(FeatureFileError, match="--hop must be above zero"):
        import_features(folder, path, hop_seconds=hop)


def test_wrong_settings_and_places_are_refused_before_any_work(folder, path, tmp_path):
    with pytest.raises(FeatureFileError, match="--dtype must be one of float16, float32, got 'int8'"):
        import_features(folder, path, hop_seconds=0.02, dtype="int8")
    with pytest.raises(FeatureFileError, match="there is no folder"):
        import_features(tmp_path / "none", path, hop_seconds=0.02)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureFileError, match=r"holds no features \(looked for \.csv \.npy \.npz \.pkl\)"):
        import_features(tmp_path / "empty", path, hop_seconds=0.02)
    with pytest.raises(CacheFormatError, match="NAME"):
        import_features(folder, tmp_path / "features.txt", hop_seconds=0.02)
    assert not path.exists()


def test_a_name_that_is_not_utf8_is_told(folder, path):
    with open(os.fsencode(folder) + b"/\xff.npy", "wb"):
        pass
    (failure,) = import_features(folder, path, hop_seconds=0.02).failures
    assert failure.path == f"{folder}/\\xff.npy"
    assert failure.reason == "has a name that is not UTF-8; rename it"


def test_linked_folders_are_read_once_and_loops_end(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "twice").symlink_to(folder.parent / "other")
    save(folder.parent / "other" / "a.npy", frames_of(1))
    assert list(find_features(folder)) == [*(f"{n:05d}" for n in range(6)), "twice/a"]


def test_a_cache_that_another_writes_is_refused(folder, tmp_path, make_header):
    path = tmp_path / "features.h5"
    import_features(folder, path, hop_seconds=0.02)
    save(folder / "new.npy", frames_of(2))
    with open_cache(path) as store:
        header = store.header
    with CacheWriter(path, header), pytest.raises(BlockingIOError):
        import_features(folder, path, hop_seconds=0.02)


def test_a_zip_bomb_is_refused_unopened(tmp_path):
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", b"")
    with zipfile.ZipFile(file, "a") as archive:
        archive.infolist()[0].file_size = 1 << 40
        archive.writestr("x", b"")  # has the directory written again
    with pytest.raises(FeatureFileError, match="unpacks to 1099511627776 bytes"):
        read_features(file, Reading(root=file.parent))


@pytest.mark.parametrize("shape", ["(1099511627776, 1024)", "(4611686018427387904, 4)", "(True, 4)", "('a',)"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_shape_that_is_only_claimed_is_refused(tmp_path, shape, suffix):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    file = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("frames.npy", content)
    with pytest.raises(FeatureFileError):
        read_features(file, Reading(root=file.parent))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([".npy", ".npz", ".pkl"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 1 << 16),
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_damaged_file_gives_frames_or_a_clean_error(tmp_path, kind, changes, cut):
    file = save(tmp_path / f"a{kind}", frames_of(4))
    content = bytearray(file.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    file.write_bytes(content[: len(content) - cut % len(content)] if cut % 2 else content)
    try:
        frames = read_features(file, Reading(root=file.parent)).frames
    except (ValueError, OSError):
        return
    assert frames.ndim == 2
    assert frames.dtype.kind in "fiub"


def test_a_copy_of_the_folder_is_the_same_source(folder, path, tmp_path):
    import_features(folder, path, hop_seconds=0.02)
    copy = shutil.copytree(folder, tmp_path / "copy" / "vit")
    assert import_features(copy, path, hop_seconds=0.02).present == 6


@pytest.mark.parametrize("suffix", [".npy", ".pkl"])
def test_a_sparse_file_of_many_gigabytes_is_not_read(tmp_path, suffix, monkeypatch):
    file = tmp_path / f"bomb{suffix}"
    with file.open("wb") as opened:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 10)}
        np.lib.format.write_array_header_1_0(opened, header)
        opened.truncate(opened.tell() + (4 << 30))
    monkeypatch.setattr("cache.exchange.feature_files.READERS", {suffix: lambda *_: pytest.fail("was read")})
    with pytest.raises(FeatureFileError, match=f"one clip takes at most {MAX_BYTES}"):
        read_features(file, Reading(root=file.parent))
