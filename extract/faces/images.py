"""Read a folder of images as a clip: faces that another program has cut out, one image per row."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from extract.errors import MediaError
from extract.faces.crop_table import CropTable, read_crop_table
from extract.sources import is_image

BLOCK_ROWS = 64
ANIMATED = frozenset({"PNG", "WEBP"})
"""Formats in which a file may be a film; in others several pictures are views or pages of one."""
LARGEST = 512
"""Pixels: larger images are reduced to this, so that a clip of them can be held."""
SPARSEST = 100
"""Rows per image up to which numbers are taken for rows; of time stamps there would be more."""
_NUMBERED = re.compile(r"(.*?)([0-9]+)", re.DOTALL)


def image_names(folder: Path, fps: float | None) -> tuple[list[str], CropTable | None]:
    """Return the name of the image of each row of a folder, "" where there is none, and what says so.

    That is the table that `emi faces` has written beside its crops, or None: then the names do.

    Args:
        folder: of the clip.
        fps: images per second, where that is known.

    Raises:
        MediaError: there are no images, the names give no order, the table contradicts them, or emi cut them out at
            another rate.
    """
    try:
        names = [path.name for path in folder.iterdir() if is_image(path.name)]
    except OSError as error:
        raise MediaError(f"cannot be read ({error.strerror})") from error
    table = read_crop_table(folder, names)
    if table is None:
        return rows_of(names), None
    return table.names if fps is None else table.rows_at(fps), table


def read_images(
    folder: Path, names: Sequence[str]
) -> Iterator[tuple[list[NDArray[np.uint8]], NDArray[np.bool_], list[str]]]:
    """Read the images of a folder in blocks.

    Args:
        folder: of the clip.
        names: the first that `image_names` gives.

    Yields:
        Per row its image as (height, width, 3) uint8 RGB, empty where it is missing or broken; (rows,) bool, where it
        is not; why images are broken.
    """
    for block in (names[i : i + BLOCK_ROWS] for i in range(0, len(names), BLOCK_ROWS)):
        images, valid = [np.zeros((0, 0, 3), np.uint8)] * len(block), np.zeros(len(block), np.bool_)
        problems = []
        for row, name in enumerate(block):
            if name:
                try:
                    images[row], valid[row] = read_image(folder / name), True
                except MediaError as error:
                    problems.append(f"{name} {error}")
        yield images, valid, problems


def rows_of(names: Sequence[str]) -> list[str]:
    """Return the name of the image of each row, "" where there is none.

    Where names differ in the number at their end only, it counts rows, from 0 if there is an image 0, else from 1.
    Other names are sorted, with the numbers in them as numbers, and have no gaps.

    Raises:
        MediaError: there are none, two have one number, or most numbers are missing.
    """
    if not names:
        raise MediaError("is a folder without images")
    stems = {name: Path(name).stem for name in names}
    found = {name: _NUMBERED.fullmatch(stem) for name, stem in stems.items()}
    if not all(found.values()) or len({match[1] for match in found.values() if match}) > 1:
        return sorted(names, key=lambda name: [*map(_sortable, re.split("([0-9]+)", stems[name])), (0, 0, name)])
    numbered = sorted((int(match[2]), name) for name, match in found.items() if match)
    for (number, name), (following, other) in itertools.pairwise(numbered):
        if number == following:
            raise MediaError(f"has two images of number {number}: {name} and {other}")
    first, last = min(1, numbered[0][0]), numbered[-1][0]
    if last - first >= SPARSEST * len(names):
        raise MediaError(
            f"has {len(names)} images with numbers up to {last}; number them by rows, from 0 or 1 without time stamps"
        )
    rows = [""] * (last - first + 1)
    for number, name in numbered:
        rows[number - first] = name
    return rows


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image as (height, width, 3) uint8 RGB of at most `LARGEST` pixels; transparency is dropped.

    Raises:
        MediaError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if image.format in ANIMATED and frames > 1:
                raise MediaError(f"is an animated picture of {frames} frames; save them as single images")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except MediaError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot be read ({str(error).replace(str(path), path.name)})") from error
    if max(upright.size) > LARGEST:
        upright.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(upright)


def scaled(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8 as (side, side, 3)."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def squares(images: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8 images as (images, side, side, 3)."""
    found = np.zeros((len(images), side, side, 3), np.uint8)
    for square, image in zip(found, images, strict=True):
        square[:] = scaled(image, side)
    return found


def _sortable(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)
