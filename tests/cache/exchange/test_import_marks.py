"""Imported features keep the times of their frames, and the marks of those in which nothing was found."""

import pickle

import numpy as np
import pytest

from cache import CacheFormatError, open_cache
from cache.exchange.features import FeatureFileError
from cache.exchange.importing import import_features

DIM = 4


def frames_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(1 + number % 5, DIM)).astype(np.float32)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(array))
    else:
        np.save(path, array)


@pytest.fixture
def folder(tmp_path):
    """Features of faces as Hume-Vidmimic2 lays them out."""
    for number in range(6):
        save(tmp_path / "vit" / f"{number:05d}.pkl", frames_of(number))
    return tmp_path / "vit"


def marked(root, *names, times=True, valid="valid", rows=4):
    """Write `.npz` files with times and marks beside the features; one frame is not valid."""
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        starts = np.linspace(0, 2, rows, endpoint=False)
        more = {"times": np.stack([starts, starts + 0.5], 1)} if times else {}
        if valid:
            more[valid] = np.arange(rows) != 1
        np.savez(root / f"{name}.npz", frames=np.full((rows, DIM), number + 1.0), **more)
    return root


def test_times_and_marks_beside_the_features_are_taken(tmp_path, path):
    root = marked(tmp_path / "faces", "a", "b")
    summary = import_features(root, path, modality="face")
    assert (summary.written, summary.failures, summary.hop_seconds) == (2, [], None)
    with open_cache(path) as store:
        clip = store["b"]
        assert (store.header.optional, store.hop_seconds) == (("times", "valid"), None)
        assert (store.header.modality, store.fingerprint) == ("face", {"backbone": "import:faces", "dtype": "float16"})
    assert clip.frames.tolist() == [[2] * DIM, [0] * DIM, [2] * DIM, [2] * DIM]
    assert clip.valid.tolist() == [True, False, True, True]
    assert clip.times.tolist() == [[0, 0.5], [0.5, 1], [1, 1.5], [1.5, 2]]
    assert clip.seconds == 2
    assert import_features(root, path, modality="face").present == 2
    with pytest.raises(CacheFormatError, match=r"of modality face, and .* were to be added"):
        import_features(root, path)


def test_marks_may_come_without_times_and_under_another_name(tmp_path, path):
    root = marked(tmp_path / "in", "a", times=False, valid="mask")
    np.savez(root / "b.npz", features=np.ones((2, DIM)), mask=[0, 1])
    np.savez(root / "c.npz", frames=np.ones((2, DIM)))
    np.savez(root / "d.npz", frames=np.ones((2, DIM)), mask=np.ones(3))
    np.savez(root / "e.npz", frames=np.ones((2, DIM)), mask=[2, 1])
    summary = import_features(root, path, hop_seconds=0.5, valid="mask")
    assert {failure.id: failure.reason for failure in summary.failures} == {
        "c": "has no array 'mask', which --valid names",
        "d": "has marks of shape (3,) and float64, expected (2,) and bool",
        "e": "has marks of shape (2,) and int64, expected (2,) and bool",
    }
    with open_cache(path) as store:
        assert (store.header.optional, store.hop_seconds, store["a"].seconds) == (("valid",), 0.5, 2)
        assert store["b"].valid.tolist() == [False, True]


def test_the_first_file_decides_which_arrays_clips_have(tmp_path, path):
    root = marked(tmp_path / "in", "b", "c", valid=None)
    (root / "a.npz").write_bytes(b"no zip")
    np.savez(root / "d.npz", frames=np.ones((2, DIM)))
    marked(root, "e")
    np.savez(root / "f.npz", frames=np.ones((2, DIM)), times=np.zeros(2))
    summary = import_features(root, path)
    assert summary.written == 2
    assert {failure.id: failure.reason for failure in summary.failures if failure.id != "a"} == {
        "d": "has no array 'times', unlike the first file",
        "e": "has an array 'valid', unlike the first file",
        "f": "has times of shape (2,), expected (2, 2): starts and ends",
    }
    marked(root, "0", times=False)  # comes later, and decides nothing
    summary = import_features(root, path)
    assert (summary.present, summary.failures[0].id) == (2, "00000")
    assert summary.failures[0].reason == "has no array 'times', unlike the first file"


def test_clips_in_which_nothing_was_found_are_one_frame_that_is_not_valid(tmp_path, path):
    root = marked(tmp_path / "in", "b", rows=0)
    np.savez(root / "a.npz", frames=np.zeros(0))
    assert "holds an array of shape (0,)" in import_features(root, path).failures[0].reason
    assert not path.exists()
    marked(root, "c", "d")
    summary = import_features(root, path)
    assert (summary.written, summary.failures, summary.empty) == (4, [], 2)
    with open_cache(path) as store:
        for clip in (store["a"], store["b"]):
            assert (clip.frames.tolist(), clip.valid.tolist()) == ([[0] * DIM], [False])
            assert (clip.times.tolist(), clip.seconds) == ([[0, 0]], 0)
    assert import_features(root, path).present == 4


def test_missing_faces_of_the_supplied_features_are_frames_of_zeros(folder, path):
    frames = frames_of(4)
    frames[[0, 3]] = 0
    save(folder / "00007.pkl", frames)
    save(folder / "00008.pkl", frames[:0])
    summary = import_features(folder, path, hop_seconds=1 / 6, valid="nonzero", modality="face")
    assert (summary.written, summary.failures, summary.empty) == (8, [], 1)
    with open_cache(path) as store:
        assert store["00007"].valid.tolist() == [False, True, True, False, True]
        assert store["00008"].valid.tolist() == [False]
        assert store["00000"].valid.all()
        assert (store.hop_seconds, store.header.optional) == (1 / 6, ("valid",))
    assert import_features(folder, path, hop_seconds=1 / 6, valid="nonzero", modality="face").present == 8


def test_without_marks_a_file_without_frames_is_refused(folder, path):
    save(folder / "00008.pkl", frames_of(4)[:0])
    (failure,) = import_features(folder, path).failures
    assert failure.reason == "holds an array of shape (0, 4), expected (frames, dim)"


def test_masks_may_lie_in_a_folder_of_their_own(folder, path, tmp_path):
    masks = tmp_path / "masks"
    for number in range(5):
        save(masks / f"{number:05d}.npy", np.arange(1 + number % 5) != 1)
    np.save(masks / "00004.npy", np.ones(3, bool))
    (masks / "00003.npy").write_bytes(b"\x93NUMPY")
    summary = import_features(folder, path, valid=str(masks))
    assert {failure.id: failure.reason for failure in summary.failures} == {
        "00003": f"has a mask that is no intact .npy file: {masks / '00003.npy'}",
        "00004": "has marks of shape (3,) and bool, expected (5,) and bool",
        "00005": f"has no mask {masks / '00005.npy'}",
    }
    with open_cache(path) as store:
        assert store["00002"].valid.tolist() == [True, False, True]
        assert store["00002"].frames[1].tolist() == [0] * DIM
    with pytest.raises(FeatureFileError, match=r"there is no folder masks; --valid takes one with a boolean .npy"):
        import_features(folder, path, valid="masks")


@pytest.mark.parametrize("bad", [[[0, 1], [2, 1]], [[1, 2], [0, 1]], [[0, np.nan], [0, 1]], [[0, np.inf], [0, 1]]])
def test_times_that_are_none_are_refused(tmp_path, path, bad):
    root = marked(tmp_path / "in", "a", valid=None)
    np.savez(root / "b.npz", frames=np.ones((2, DIM)), times=np.array(bad))
    (failure,) = import_features(root, path).failures
    assert (failure.id, "times are not" in failure.reason or "its length is" in failure.reason) == ("b", True)


@pytest.mark.parametrize("modality", ["", "Face", "a b"])
def test_a_modality_is_a_name(folder, path, modality):
    with pytest.raises(FeatureFileError, match="--modality takes a name"):
        import_features(folder, path, modality=modality)
