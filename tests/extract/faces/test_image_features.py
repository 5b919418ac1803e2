"""Videos and folders of images through image encoders: the library's features of each crop, aligned or square."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import emi
from cache.errors import StaleCacheError
from emi.cli import app
from emi.demo.drawing import Identity, Pose, draw
from extract.errors import ExtractSettingsError
from extract.faces.align import SQUARE_SCALE, square_crops
from extract.modality.registry import MODALITIES
from extract.settings import ExtractSettings
from tests.extract.image_checkpoints import library, save

RATE = 10
FILMS = {"a/always": "x" * 14, "between": "..xxxx....xxxx", "never": "." * 8}
TOLERANCE = 2e-4


def film(seed, pattern):
    poses = [Pose(jaw=abs(np.sin(i / 2)), centre=(0.5 + 0.002 * i, 0.47)) for i in range(len(pattern))]
    return [
        draw([(Identity.of(seed), pose)] if x == "x" else [], 160, 200) for x, pose in zip(pattern, poses, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encode):
    folder = tmp_path_factory.mktemp("films")
    for seed, (name, pattern) in enumerate(FILMS.items()):
        (folder / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        encode(folder / "clips" / f"{name}.mp4", film(seed, pattern), RATE)
    for crop in ("aligned", "square"):
        arguments = ["faces", folder / "clips", "--out", folder / crop, "--fps", 5, "--crop", crop]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    for kind in ("vit", "clip", "siglip", "dinov2", "dinov3_vit"):
        save(folder / kind, kind)
    return folder


def extracted(media, cache, backbone, **settings):
    summary = emi.extract(media, cache, backbone=str(backbone), dtype="float32", device="cpu", fps=5, **settings)
    assert summary.failures == []
    return emi.open_cache(cache)


@pytest.mark.parametrize("crop", ["aligned", "square"])
@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "dinov2", "dinov3_vit"])
def test_features_of_videos_are_those_of_the_library_on_each_crop(folder, tmp_path, kind, crop):
    store = extracted(folder / "clips", tmp_path / "f.zarr", folder / kind, precision="fp32", crop=crop)
    made = store.header.fingerprint
    assert (store.header.modality, store.header.hop_seconds) == ("face", 0.2)
    assert made["crop"] == {"aligned": "arcface 112", "square": "square 1.3 x box, 224"}[crop]
    crops = extracted(folder / crop, tmp_path / "c.zarr", folder / kind, precision="fp32", crop=crop)
    for name in FILMS:
        clip = store[name]
        paths = sorted((folder / crop / name).glob("*.png"))
        assert [int(path.stem) - 1 for path in paths] == np.flatnonzero(clip.valid).tolist()
        assert not clip.frames[~clip.valid].any()
        if paths:
            images = [np.asarray(Image.open(path)) for path in paths]
            assert images[0].shape == ((112, 112, 3) if crop == "aligned" else (224, 224, 3))
            expected = library(folder / kind, images, made["pooling"]).numpy()
            np.testing.assert_allclose(clip.frames[clip.valid], expected, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(crops[name].frames, clip.frames, rtol=0, atol=TOLERANCE)


def test_images_of_any_size_reach_the_image_processor_as_they_are(folder, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(112, 112), (90, 130), (224, 224), (60, 40)]
    images = [
        np.kron(rng.integers(0, 256, (10, 10, 3)), np.ones((26, 26, 1)))[:h, :w].astype(np.uint8) for h, w in sizes
    ]
    (tmp_path / "clips" / "x").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "clips" / "x" / f"{2 * number}.png")
    store = extracted(tmp_path / "clips", tmp_path / "f.zarr", folder / "clip", precision="fp32")
    assert store["x"].valid.tolist() == [True, False, True, False, True, False, True]
    expected = library(folder / "clip", images, "pooled").numpy()
    np.testing.assert_allclose(store["x"].frames[::2], expected, rtol=0, atol=TOLERANCE)


def test_long_videos_and_folders_are_computed_in_blocks(folder, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    media = tmp_path / "media"
    (media / "images").mkdir(parents=True)
    for number, side in enumerate((112, 112, 0, 90, 0, 112)):
        if side:
            image = Image.fromarray(rng.integers(0, 256, (side, 100, 3), dtype=np.uint8))
            image.save(media / "images" / f"{number}.png")
    (media / "video.mp4").write_bytes((folder / "clips" / "between.mp4").read_bytes())
    settings = {"max_seconds": None, "precision": "fp32", "crop": "square"}
    whole = extracted(media, tmp_path / "whole.zarr", folder / "vit", **settings)
    monkeypatch.setattr("extract.faces.video.BLOCK_ROWS", 3)
    monkeypatch.setattr("extract.faces.images.BLOCK_ROWS", 5)
    monkeypatch.setattr(type(MODALITIES["face"]), "longest_rows", 1)
    blocks = extracted(media, tmp_path / "blocks.zarr", folder / "vit", **settings)
    assert blocks["images"].valid.tolist() == [True, True, False, True, False, True]
    for name in ("images", "video"):
        np.testing.assert_array_equal(blocks[name].valid, whole[name].valid)
        np.testing.assert_allclose(blocks[name].frames, whole[name].frames, rtol=0, atol=1e-5)


def test_the_choices_are_in_the_fingerprint_and_refused_where_they_differ(folder, tmp_path):
    store = extracted(folder / "clips", tmp_path / "f.zarr", folder / "vit", pooling="pooled")
    assert store.header.fingerprint["pooling"] == "pooled"
    with pytest.raises(StaleCacheError, match=r"pooling \(stored pooled, wanted cls\)"):
        extracted(folder / "clips", tmp_path / "f.zarr", folder / "vit")
    with pytest.raises(StaleCacheError, match=r"crop \(stored arcface 112, wanted square 1.3 x box, 224\)"):
        extracted(folder / "clips", tmp_path / "f.zarr", folder / "vit", pooling="pooled", crop="square")
    with pytest.raises(ExtractSettingsError, match="--crop takes aligned or square, got 'round'"):
        ExtractSettings(crop="round")


def test_a_square_crop_is_the_box_with_a_margin_and_repeats_the_edge():
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:40, 30:40] = 255
    boxes = np.array([[30, 20, 40, 40], [-10, 5, 10, 25]], np.float32)
    face, edge = square_crops(
        np.stack([picture, np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None], (60, 80, 3))]), boxes
    )
    assert face.shape == (224, 224, 3)
    share = 224 / (SQUARE_SCALE * 20)  # pixels of the crop per pixel of the picture
    lit = np.argwhere(face[..., 0] > 127)
    np.testing.assert_allclose(lit.min(axis=0), [112 - 10 * share, 112 - 5 * share], atol=1)
    np.testing.assert_allclose(lit.max(axis=0), [111 + 10 * share, 111 + 5 * share], atol=1)
    assert (edge[:, : round(13 * share) - 3] == 0).all()  # the picture's first column
    assert edge[0, -1, 0] == 12
