"""Faces are turned onto the template of ArcFace, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from emi.demo.drawing import Identity, Pose, draw
from extract.faces.align import ARCFACE, CROP_SIDE, crops, onto_template
from extract.faces.mtcnn import Detector


def applied(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def noise(height, width, rows=1):
    return np.random.default_rng(0).integers(0, 256, (rows, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("angle", [0, 25, -170])
def test_a_turned_and_scaled_template_is_brought_back_exactly(angle):
    turn = 3.7 * np.exp(1j * np.deg2rad(angle))
    moved = (ARCFACE @ [1, 1j]) * turn + (40 - 15j)
    (matrix,) = onto_template(np.stack([moved.real, moved.imag], axis=1)[None])
    np.testing.assert_allclose(applied(matrix, np.stack([moved.real, moved.imag], axis=1)), ARCFACE, atol=1e-3)


def test_the_similarity_has_the_least_squared_distance():
    landmarks = np.random.default_rng(1).uniform(0, 300, (20, 5, 2))
    for matrix, points in zip(onto_template(landmarks), landmarks, strict=True):
        x, y, one, zero = points[:, 0], points[:, 1], np.ones(5), np.zeros(5)
        system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, c, d = np.linalg.lstsq(system, ARCFACE.T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(matrix, [[a, -b, c], [b, a, d]], rtol=1e-4, atol=1e-4)


def shifted(left, top, scale=1.0):
    """(2, 3) transform that brings a point of the picture to the corner of the crop."""
    return [[scale, 0, -left * scale], [0, scale, -top * scale]]


def test_a_shift_by_whole_pixels_cuts_out_what_is_there():
    images = noise(90, 120, 2)
    cut = crops(images, np.array([shifted(30, 20), shifted(5, 9)], np.float32), 48)
    np.testing.assert_array_equal(cut[0], images[0, 20:68, 30:78])
    np.testing.assert_array_equal(cut[1], images[1, 9:57, 5:53])


def test_outside_of_the_picture_is_black():
    image = np.full((1, 60, 60, 3), 200, np.uint8)
    (cut,) = crops(image, np.array([shifted(-20, -25)], np.float32), 80)
    assert set(np.unique(cut)) == {0, 200}
    assert (cut[:, :, 0] > 0).sum() == 60 * 55  # from 20 left of it, and 25 above


def test_sampling_is_bilinear():
    image = noise(40, 50)
    (cut,) = crops(image, np.array([[[1, 0, -3.25], [0, 1, -7.5]]], np.float32), 20)
    pixels = image[0].astype(float)
    mixed = pixels[7:27] * 0.5 + pixels[8:28] * 0.5
    np.testing.assert_allclose(cut, mixed[:, 3:23] * 0.75 + mixed[:, 4:24] * 0.25, atol=0.51)


def test_a_crop_is_what_pillow_makes_of_the_transform():
    image = np.array(Image.fromarray(noise(12, 16)[0]).resize((160, 120), Image.Resampling.BICUBIC))
    (matrix,) = onto_template(np.array([[[60, 40], [100, 50], [80, 65], [62, 85], [94, 92]]], np.float32))
    (cut,) = crops(image[None], matrix[None])
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    back[:, 2] += back[:, :2] @ [-0.5, -0.5] + 0.5  # Pillow counts from the corners of pixels
    pillow = Image.fromarray(image).transform(
        (CROP_SIDE, CROP_SIDE), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BILINEAR
    )
    inside = crops(np.full_like(image, 255)[None], matrix[None])[0, :, :, 0] == 255  # but for the border
    assert inside.mean() > 0.5
    assert np.abs(cut.astype(int) - np.asarray(pillow))[inside].max() <= 2


def test_crops_do_not_depend_on_their_batch():
    images, matrices = noise(90, 120, 3), np.array([shifted(3 + i, 4 - i, 0.6) for i in range(3)], np.float32)
    together = crops(images, matrices, 30)
    for i in range(3):
        np.testing.assert_array_equal(together[i], crops(images[i : i + 1], matrices[i : i + 1], 30)[0])
    assert crops(images[:0], matrices[:0], 30).shape == (0, 30, 30, 3)


def test_eyes_and_mouth_of_a_turned_face_lie_on_the_template():
    detector = Detector()
    picture = draw([(Identity.of(3), Pose(roll=20, size=0.9))], 360, 480)
    (faces,) = detector(picture[None])
    crop = crops(picture[None], onto_template(faces.landmarks[:1]))
    landmarks = detector.embed(crop)[0, 256:].reshape(2, 5).T * CROP_SIDE
    np.testing.assert_allclose(landmarks, ARCFACE, atol=9)
