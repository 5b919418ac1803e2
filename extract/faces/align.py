"""Cut faces out of pictures: turned and scaled onto the landmarks of ArcFace, or as they are, with a margin."""

import numpy as np
import torch
from numpy.typing import NDArray

from extract.faces.images import scaled

CROP_SIDE = 112
ARCFACE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
"""(5, 2) landmarks in a crop of 112 pixels, in the order of `Faces.landmarks` (InsightFace's alignment)."""
SQUARE_SIDE = 224
SQUARE_SCALE = 1.3
"""Of the longer side of the box: the whole head, as the faces of VGGFace2 were cut out (Cao et al. 2018)."""
SIDES = {"aligned": CROP_SIDE, "square": SQUARE_SIDE}


def onto_template(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the similarity that brings landmarks closest to those of ArcFace, in the mean of squares.

    This is Umeyama's transform (1991) without reflection. In the plane it has a closed form: with points as complex
    numbers about their means, the turn and scale is the sum of conj(from) x to over the sum of |from|².

    Args:
        landmarks: (faces, 5, 2) in pixels of the picture.

    Returns:
        (faces, 2, 3), mapping (x, y, 1) of the picture to the crop.
    """
    points, template = (np.asarray(p, np.float64) @ [1, 1j] for p in (landmarks, ARCFACE))
    centre = points.mean(axis=1, keepdims=True)
    spread = (np.abs(points - centre) ** 2).sum(axis=1)
    turn = (np.conj(points - centre) @ (template - template.mean())) / np.maximum(spread, 1e-12)
    return _matrices(turn, template.mean() - turn * centre[:, 0])


def cut_out(
    images: NDArray[np.uint8], boxes: NDArray[np.float32], landmarks: NDArray[np.float32], crop: str
) -> NDArray[np.uint8]:
    """Cut one face out of each picture.

    Args:
        images: (rows, height, width, 3) uint8.
        boxes: (rows, 4) in pixels.
        landmarks: (rows, 5, 2) in pixels.
        crop: key in `SIDES`.

    Returns:
        (rows, side, side, 3) uint8.
    """
    return crops(images, onto_template(landmarks)) if crop == "aligned" else square_crops(images, boxes)


def square_crops(images: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cut out the square around the middle of each box, `SQUARE_SCALE` times its longer side, in whole pixels.

    Beyond the picture, its edge is repeated.

    Args:
        images: (rows, height, width, 3) uint8.
        boxes: (rows, 4), left, top, right, bottom in pixels; may reach beyond the picture.

    Returns:
        (rows, `SQUARE_SIDE`, `SQUARE_SIDE`, 3) uint8.
    """
    _, height, width, _ = images.shape
    found = np.empty((len(images), SQUARE_SIDE, SQUARE_SIDE, 3), np.uint8)
    sides = np.maximum(1, np.rint(SQUARE_SCALE * (boxes[:, 2:] - boxes[:, :2]).max(axis=1))).astype(int)
    corners = np.rint((boxes[:, :2] + boxes[:, 2:] - sides[:, None]) / 2).astype(int)
    for row, (image, (left, top), side) in enumerate(zip(images, corners, sides, strict=True)):
        lines, columns = (np.arange(start, start + side) for start in (top, left))
        square = image[lines.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
        found[row] = scaled(square, SQUARE_SIDE)
    return found


def crops(images: NDArray[np.uint8], matrices: NDArray[np.float32], side: int = CROP_SIDE) -> NDArray[np.uint8]:
    """Cut one crop out of each picture, with bilinear interpolation; what lies outside of the picture is black.

    A row counts for itself, so crops do not depend on the others of a batch.

    Args:
        images: (rows, height, width, 3) uint8.
        matrices: (rows, 2, 3), see above.
        side: of the crops in pixels.

    Returns:
        (rows, side, side, 3) uint8.
    """
    rows, height, width, _ = images.shape
    flat = torch.from_numpy(images).reshape(-1, 3)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    turns = np.asarray(matrices, np.float64)
    back = np.linalg.inv(turns[:, :, :2]).swapaxes(1, 2)
    points = torch.from_numpy((grid - turns[:, None, :, 2]) @ back)  # (rows, side², 2), in the picture
    corner = points.floor()
    right, below = (points - corner).to(torch.float32).unbind(-1)  # (rows, side²), fractions of a pixel
    x, y = corner.clamp(-2, max(height, width) + 1).to(torch.int64).unbind(-1)
    first = torch.arange(rows)[:, None] * height
    mixed = torch.zeros(rows, side * side, 3)
    for dx, across in ((0, 1 - right), (1, right)):
        for dy, down in ((0, 1 - below), (1, below)):
            column, line = x + dx, y + dy
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            at = ((first + line.clamp(0, height - 1)) * width + column.clamp(0, width - 1)).flatten()
            weight = (across * down * inside)[..., None]
            mixed += weight * flat.index_select(0, at).reshape(rows, side * side, 3)
    return mixed.round().to(torch.uint8).reshape(rows, side, side, 3).numpy()


def _matrices(turn: NDArray[np.complex128], shift: NDArray[np.complex128]) -> NDArray[np.float32]:
    """Return z -> turn z + shift as (faces, 2, 3)."""
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.moveaxis(np.array(rows), 2, 0).astype(np.float32)
