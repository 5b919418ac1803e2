"""MTCNN finds the faces that facenet-pytorch finds, batch by batch, and none where there is none."""

import importlib.util

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn.functional import interpolate

from emi.demo.drawing import Identity, Pose, draw
from extract.errors import BackboneError, ExtractSettingsError
from extract.faces import package
from extract.faces.mtcnn import Detector, DetectorSettings, weights
from extract.faces.mtcnn.areas import AreaTable
from extract.faces.mtcnn.boxes import overlaps, without_doubles

HOPPER = {
    "box": [163.72, 105.84, 347.64, 344.03],
    "landmarks": [[220.33, 189.92], [308.47, 187.09], [269.23, 238.88], [230.43, 282.64], [306.78, 279.59]],
}
"""Of facenet-pytorch 2.6.0 with min_face_size=40."""


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture(scope="module")
def hopper():
    """The public-domain portrait of Grace Hopper that comes with matplotlib: (600, 512, 3)."""
    return np.array(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB"))


def variants(picture: np.ndarray) -> list[np.ndarray]:
    """The picture turned, scaled, dark and noisy, all of its size."""
    image, rng = Image.fromarray(picture), np.random.default_rng(0)
    turned = [image.rotate(angle, Image.Resampling.BICUBIC) for angle in (-20, -8, 8, 20)]
    scaled = []
    for scale in (0.4, 0.6, 0.85):
        canvas = Image.new("RGB", image.size, (90, 100, 110))
        canvas.paste(image.resize([round(side * scale) for side in image.size]), (7, 11))
        scaled.append(canvas)
    dark = [(picture * factor).astype(np.uint8) for factor in (0.2, 0.5)]
    noisy = [(picture + rng.normal(0, sigma, picture.shape)).clip(0, 255).astype(np.uint8) for sigma in (8, 25)]
    return [picture, *(np.asarray(i) for i in (*turned, *scaled)), *dark, *noisy]


def drawings(count: int) -> list[np.ndarray]:
    """People with all sorts of expressions, poses and sizes, two in every third picture."""
    rng, pictures = np.random.default_rng(1), []
    for seed in range(count):
        poses = [
            Pose(
                smile=rng.uniform(-1, 1),
                jaw=rng.uniform(0, 1),
                brow=rng.uniform(-1, 1),
                blink=rng.choice([0.0, 0.0, 1.0]),
                yaw=rng.uniform(-0.6, 0.6),
                roll=rng.uniform(-12, 12),
                centre=(x, rng.uniform(0.4, 0.6)),
                size=rng.uniform(0.35, 0.75),
            )
            for x in ([0.25, 0.75] if seed % 3 == 0 else [rng.uniform(0.35, 0.65)])
        ]
        pictures.append(draw([(Identity.of(10 * seed + i), pose) for i, pose in enumerate(poses)]))
    return pictures


def test_the_portrait_has_the_face_that_facenet_pytorch_finds(detector, hopper):
    (faces,) = detector(hopper[None])
    np.testing.assert_allclose(faces.boxes, [HOPPER["box"]], atol=0.01)
    np.testing.assert_allclose(faces.landmarks, [HOPPER["landmarks"]], atol=0.01)
    assert faces.scores[0] > 0.99


@pytest.mark.skipif(importlib.util.find_spec("facenet_pytorch") is None, reason="facenet-pytorch is not installed")
def test_boxes_equal_those_of_facenet_pytorch(detector, hopper):
    from facenet_pytorch import MTCNN

    peer = MTCNN(keep_all=True, min_face_size=40)
    count = equal = 0
    for pictures in (variants(hopper), drawings(30)):
        for picture, faces in zip(pictures, detector(np.stack(pictures)), strict=True):
            boxes, _ = peer.detect(Image.fromarray(picture))
            expected = np.zeros((0, 4), np.float32) if boxes is None else boxes.astype(np.float32)
            count += max(len(faces), len(expected))
            equal += int((overlaps(expected, faces.boxes) >= 0.9).any(axis=1).sum()) if len(faces) else 0
    assert count > 45
    assert equal >= 0.99 * count


def test_every_drawn_face_is_found_once(detector):
    pictures = drawings(30)
    found = detector(np.stack(pictures))
    assert sum(len(faces) == (2 if i % 3 == 0 else 1) for i, faces in enumerate(found)) >= 29


def test_a_batch_gives_what_single_pictures_give(detector, hopper):
    pictures = np.stack(variants(hopper))
    for together, picture in zip(detector(pictures), pictures, strict=True):
        (alone,) = detector(picture[None])
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=0.02)
        np.testing.assert_allclose(together.landmarks, alone.landmarks, atol=0.02)


def test_nothing_is_found_where_there_is_no_face(detector):
    rng = np.random.default_rng(0)
    pictures = [np.full((240, 320, 3), 127, np.uint8), np.zeros((240, 320, 3), np.uint8)]
    pictures += [rng.integers(0, 256, (240, 320, 3)).astype(np.uint8) for _ in range(4)]
    blobs = [Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)) for _ in range(4)]
    pictures += [np.asarray(blob.resize((320, 240), Image.Resampling.BICUBIC)) for blob in blobs]
    assert [len(faces) for faces in detector(np.stack(pictures))] == [0] * len(pictures)


@pytest.mark.parametrize("photograph", ["china.jpg", "flower.jpg"])
def test_nothing_is_found_in_photographs_without_people(detector, photograph):
    pictures = np.stack([np.flip(load_sample_image(photograph), axes) for axes in ((), 1, 0, (0, 1))])
    assert [len(faces) for faces in detector(pictures)] == [0] * 4


def test_faces_below_the_smallest_size_are_not_searched(hopper):
    small = np.array(Image.fromarray(hopper).resize((128, 150)))
    assert [len(Detector(DetectorSettings(min_face=size))(small[None])[0]) for size in (20, 120, 400)] == [1, 0, 0]
    with pytest.raises(ExtractSettingsError, match="--min-face"):
        DetectorSettings(min_face=5)


@pytest.mark.parametrize(("height", "width", "out"), [(48, 64, (14, 20)), (31, 17, (31, 17)), (100, 99, (30, 7))])
def test_area_tables_average_as_torch_does(height, width, out):
    images = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
    table, planes = AreaTable(images), images.permute(0, 3, 1, 2).float()
    torch.testing.assert_close(table.resized(*out), (interpolate(planes, out, mode="area") - 127.5) / 128)
    pictures, boxes = torch.tensor([2, 0, 2]), torch.tensor([[0, 0, 17, 31], [3, 5, 15, 9], [16, 2, 17, 3]])
    for crop, picture, (x0, y0, x1, y1) in zip(table.crops(pictures, boxes, 24), pictures, boxes, strict=True):
        expected = interpolate(planes[picture, None, :, y0:y1, x0:x1], (24, 24), mode="area")[0]
        torch.testing.assert_close(crop, (expected - 127.5) / 128)


def test_area_tables_are_exact_beyond_the_range_of_their_sums():
    images = torch.full((1, 3000, 3000, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(AreaTable(images).resized(12, 12), torch.full((1, 3, 12, 12), 127.5 / 128))


@pytest.mark.parametrize("of_smaller", [False, True])
@pytest.mark.parametrize("count", [0, 1, 60, 1500])
def test_doubles_are_suppressed_greedily(count, of_smaller):
    rng = np.random.default_rng(count)
    corner, scores = rng.uniform(0, 200, (count, 2)), rng.random(count).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(10, 60, (count, 2))], axis=1).astype(np.float32)
    expected: list[int] = []
    for i in np.argsort(-scores):
        if not (overlaps(boxes[[i]], boxes[expected], of_smaller=of_smaller) > 0.4).any():
            expected.append(int(i))
    assert without_doubles(boxes, scores, 0.4, of_smaller=of_smaller).tolist() == expected


def test_overlaps_are_intersections_over_unions():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(overlaps(boxes[:1], boxes), [[1, 1 / 3, 0]])


def test_crops_are_embedded_as_266_numbers_with_landmarks_of_the_crop(detector, hopper):
    (faces,) = detector(hopper[None])
    left, top, right, bottom = faces.boxes[0].astype(int)
    side = max(right - left, bottom - top)
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    crop = hopper[top : top + side, left : left + side]
    (numbers,) = detector.embed(crop[None])
    assert numbers.shape == (266,)
    points = numbers[256:].reshape(2, 5).T * side + [left, top]
    np.testing.assert_allclose(points, faces.landmarks[0], atol=0.03 * side)
    many = detector.embed(np.stack([crop, crop[:, ::-1], crop]))
    np.testing.assert_allclose(many[0], numbers, atol=1e-4)
    assert np.abs(many[1] - numbers).max() > 0.1
    assert detector.embed(np.zeros((0, 48, 48, 3), np.uint8)).shape == (0, 266)


def test_a_weight_file_of_another_content_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "mtcnn" / "assets" / "weights"
    folder.mkdir(parents=True)
    (folder / "pnet.lz4").write_bytes((weights.weights_folder() / "pnet.lz4").read_bytes()[:-1] + b"x")
    monkeypatch.setattr(weights, "weights_folder", lambda: folder)
    with pytest.raises(BackboneError, match="SHA-256"):
        Detector()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(package, "PACKAGE", "no_such_package")
    with pytest.raises(BackboneError, match=r"pip install 'emi-mimicry\[faces\]'"):
        Detector()
