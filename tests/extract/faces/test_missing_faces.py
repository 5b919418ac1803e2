"""Rows without a face as black pictures: `--missing-faces black`, in videos, folders of images and long clips."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import emi
from cache.errors import StaleCacheError
from emi.cli import app
from emi.demo.drawing import Identity, Pose, draw
from extract.errors import ExtractSettingsError
from extract.modality.registry import MODALITIES
from extract.settings import ExtractSettings
from tests.extract.image_checkpoints import save

RATE = 5
FILMS = {"always": "x" * 7, "between": "xx....xxx", "never": "." * 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encode):
    """Videos, the crops of their faces, a black image, and an image encoder."""
    root = tmp_path_factory.mktemp("black")
    (root / "clips").mkdir()
    for seed, (name, pattern) in enumerate(FILMS.items()):
        pictures = [
            draw(
                [(Identity.of(seed), Pose(jaw=abs(np.sin(i / 2)), centre=(0.5, 0.47)))] if letter == "x" else [],
                160,
                200,
            )
            for i, letter in enumerate(pattern)
        ]
        encode(root / "clips" / f"{name}.mp4", pictures, RATE)
    arguments = ["faces", root / "clips", "--out", root / "crops", "--fps", RATE]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0
    (root / "black" / "black").mkdir(parents=True)
    Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(root / "black" / "black" / "1.png")
    save(root / "vit", "vit")
    return root


def extracted(media, cache, backbone="mtcnn", **settings):
    how = {"dtype": "float32", "device": "cpu", "precision": "fp32", "fps": RATE} | settings
    summary = emi.extract(media, cache, backbone=str(backbone), **how)
    assert summary.failures == []
    return summary, emi.open_cache(cache)


@pytest.mark.parametrize("kind", ["mtcnn", "vit"])
@pytest.mark.parametrize("media", ["clips", "crops"])
def test_rows_without_a_face_have_the_features_of_a_black_image(folder, tmp_path, kind, media):
    backbone = folder / kind if kind == "vit" else kind
    invalid = extracted(folder / media, tmp_path / "i.zarr", backbone)[1]
    store = extracted(folder / media, tmp_path / "b.zarr", backbone, missing_faces="black")[1]
    black = extracted(folder / "black", tmp_path / "one.zarr", backbone)[1]["black"].frames[0]
    assert black.any()
    assert sorted(store.ids) == sorted(FILMS)
    for name in FILMS:
        there = np.array([letter == "x" for letter in FILMS[name]])
        clip = store[name]
        assert clip.valid.tolist() == [True] * len(there), name
        np.testing.assert_allclose(clip.frames[~there], np.tile(black, ((~there).sum(), 1)), atol=1e-5)
        if there.any():
            np.testing.assert_allclose(clip.frames[there], invalid[name].frames[there], atol=1e-5)


def test_a_clip_without_any_face_is_black_in_every_row(folder, tmp_path):
    store = extracted(folder / "clips", tmp_path / "b.zarr", missing_faces="black")[1]
    assert len(store["never"].frames) == len(FILMS["never"])
    assert store["never"].valid.all()
    native = extracted(folder / "clips", tmp_path / "n.zarr", missing_faces="black", fps=None)[1]["never"]
    np.testing.assert_allclose(native.times[:, 0], np.arange(len(FILMS["never"])) / RATE, atol=1e-3)


def test_the_summary_still_names_clips_without_a_face(folder, tmp_path):
    summary, _ = extracted(folder / "clips", tmp_path / "b.zarr", missing_faces="black")
    assert {note.id: note.missing for note in summary.missing} == {"between": pytest.approx(4 / 9), "never": 1.0}


@pytest.mark.parametrize("media", ["clips", "crops"])
def test_long_clips_are_the_same(folder, tmp_path, monkeypatch, media):
    how = {"missing_faces": "black", "fps": RATE}
    monkeypatch.setattr("extract.faces.video.BLOCK_ROWS", 4)
    whole = extracted(folder / media, tmp_path / "whole.zarr", **how)[1]
    monkeypatch.setattr(type(MODALITIES["face"]), "longest_rows", 1)
    blocks = extracted(folder / media, tmp_path / "blocks.zarr", **how)[1]
    for name in whole.ids:
        np.testing.assert_allclose(blocks[name].frames, whole[name].frames, rtol=1e-5, atol=1e-5)
        assert blocks[name].valid.all()
    invalid = extracted(folder / media, tmp_path / "invalid.zarr")[1]["between"]
    assert not invalid.frames[~invalid.valid].any()
    assert (~invalid.valid).sum() == 4


def test_it_is_in_the_fingerprint_and_the_default_is_not(folder, tmp_path):
    store = extracted(folder / "clips", tmp_path / "f.zarr")[1]
    assert "missing_faces" not in store.header.fingerprint
    with pytest.raises(StaleCacheError, match="missing_faces"):
        extracted(folder / "clips", tmp_path / "f.zarr", missing_faces="black")
    black = extracted(folder / "clips", tmp_path / "b.zarr", missing_faces="black")[1]
    assert black.header.fingerprint["missing_faces"] == "black"


def test_another_word_is_refused():
    with pytest.raises(ExtractSettingsError, match="--missing-faces takes invalid or black, got 'white'"):
        ExtractSettings(missing_faces="white")
