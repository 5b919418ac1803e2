"""Files of an Aff-Wild2 challenge with a row per frame, named by its image: `<trial>/00001.jpg,0.12,-0.3`.

The organisers' example file gives the rows of a submission and their order.
"""

import csv
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.paths import StrPath
from train_head.data.labels import Labels
from train_head.errors import LabelError
from train_head.targets import FRAME

IMAGE_LOCATION = "image_location"
_IMAGE = re.compile(r"(.+)/([0-9]+)\.(?:jpg|jpeg|png)")


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The rows of a file.

    Attributes:
        path: of the file.
        names: the columns after `image_location`.
        images: (rows,) the first column, as written.
        cells: (rows,) the other cells, as written.
    """

    path: str
    names: tuple[str, ...]
    images: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]

    @cached_property
    def places(self) -> list[tuple[str, int]]:
        """(rows,) clip and frame, from 0, of each row.

        Raises:
            LabelError: a row names no image of a numbered frame.
        """
        found = [_IMAGE.fullmatch(image) for image in self.images]
        if None in found:
            number = found.index(None)
            raise LabelError(
                f"{self.path}, line {number + 2}: expected the image of a frame, such as trial/00001.jpg, got "
                f"{self.images[number]!r}"
            )
        return [(match[1], int(match[2]) - 1) for match in found if match is not None]

    def clips(self) -> Labels:
        """Return every frame of the clips up to the last that is named, without labels: a test split."""
        frames: dict[str, int] = {}
        for clip, frame in self.places:
            frames[clip] = max(frames.get(clip, 0), frame + 1)
        offsets = np.concatenate([[0], np.cumsum([*frames.values()])]).astype(np.int64)
        nothing = np.empty((int(offsets[-1]), 0), np.float32)
        clips = tuple(frames)
        return Labels(path=self.path, filenames=clips, ids=clips, names=(), values=nothing, offsets=offsets)

    def predictions(self) -> Labels:
        """Return the numbers of the rows, each clip's in the order of the frames.

        Raises:
            LabelError: a cell is no finite number, or an image stands twice.
        """
        numbers = {clip: i for i, clip in enumerate(dict.fromkeys(clip for clip, _ in self.places))}
        clip = np.array([numbers[name] for name, _ in self.places])
        frame = np.array([frame for _, frame in self.places], np.float64)
        order = np.lexsort((frame, clip))
        values = self._values()[order]
        clip, frame = clip[order], frame[order]
        twice = np.flatnonzero((np.diff(clip) == 0) & (np.diff(frame) == 0))
        if len(twice):
            raise LabelError(f"{self.path}: {self.images[int(order[twice[0] + 1])]} stands twice")
        counts = np.bincount(clip, minlength=len(numbers))
        return Labels(
            path=self.path,
            filenames=tuple(numbers),
            ids=tuple(numbers),
            names=self.names,
            values=values,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            clock=FRAME,
            moments=frame,
        )

    def _values(self) -> NDArray[np.float32]:
        try:
            values = np.array(self.cells, np.float32).reshape(len(self.cells), len(self.names))
        except ValueError as error:
            raise LabelError(f"{self.path}: every row needs {len(self.names)} numbers ({error})") from error
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise LabelError(f"{self.path}, line {row + 2}: a value is not finite")
        return values


def has_image_rows(path: StrPath) -> bool:
    """Whether a file has a row per frame that is named by its image."""
    place = Path(path)
    if not place.is_file():
        return False
    with place.open("rb") as file:
        first = file.readline(1 << 12).decode("utf-8-sig", errors="replace")
    return first.split(",")[0].strip() == IMAGE_LOCATION


def read_image_rows(path: StrPath) -> ImageRows:
    """Read a file with a row per frame.

    Raises:
        LabelError: no such file, another header, or no rows.
    """
    place = Path(path)
    if not has_image_rows(place):
        what = f"there is no file at {place}" if not place.is_file() else f"{place} has no column {IMAGE_LOCATION}"
        raise LabelError(f"{what}; expected the header {IMAGE_LOCATION},valence,arousal and a row per frame")
    with place.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if not rows:
        raise LabelError(f"{place} has a header and no rows")
    return ImageRows(
        path=str(place),
        names=tuple(cell.strip() for cell in header[1:]),
        images=tuple(row[0].strip() for row in rows),
        cells=tuple(tuple(row[1:]) for row in rows),
    )
