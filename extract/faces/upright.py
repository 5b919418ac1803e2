"""Turn decoded frames into upright RGB pictures with square pixels, reduced to a largest side."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from extract.errors import MediaError

Image = NDArray[np.uint8]
"""(height, width, 3), RGB."""


class Upright:
    """Converts the frames of one track to pictures of one size: that of the first frame, turned as a player turns it.

    A frame of another size (the resolution of a call changes) is scaled to that of the first. Fields of interlaced
    frames stay woven, and high dynamic range is not mapped: neither matters to a detector, which averages.

    Args:
        first: the first frame of the track.
        aspect: width over height of a pixel.
        max_side: pixels to which the longer side is reduced; None keeps the size.

    Attributes:
        height, width: of the pictures.
    """

    def __init__(self, first: av.VideoFrame, aspect: Fraction | None, max_side: int | None) -> None:
        width = float(first.width * (aspect or 1))
        reduction = min(1.0, (max_side or np.inf) / max(width, first.height))
        self._width, self._height = (max(1, round(side * reduction)) for side in (width, first.height))
        self._orient, turned = _orientation(first)
        self.height, self.width = (self._width, self._height) if turned else (self._height, self._width)
        # FFmpeg's scaler gives the same bytes on every processor with these
        exact = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
        self._how = (Interpolation.AREA if reduction < 1 else Interpolation.BILINEAR) | exact
        self._reformatter = VideoReformatter()

    @property
    def nothing(self) -> Image:
        """Return a black picture."""
        return np.zeros((self.height, self.width, 3), np.uint8)

    def rows(self, most_bytes: int, most: int) -> int:
        """Return how many pictures a block holds: at least one."""
        return max(1, min(most, most_bytes // (3 * self.height * self.width)))

    def __call__(self, frame: av.VideoFrame) -> Image:
        """Return a frame as (height, width, 3) uint8 RGB; transparency is dropped.

        Raises:
            MediaError: FFmpeg cannot convert its pixel format.
        """
        try:
            rgb = self._reformatter.reformat(frame, self._width, self._height, "rgb24", interpolation=int(self._how))
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"has pictures in a pixel format that cannot be converted ({frame.format.name})"
            ) from error
        picture: Any = rgb.to_ndarray()
        return np.ascontiguousarray(self._orient(picture))


def _orientation(frame: av.VideoFrame) -> tuple[Callable[[Image], Image], bool]:
    """Return what turns or mirrors a picture by the frame's display matrix, and whether width and height change places.

    Angles are rounded to quarter turns. The matrix maps (x, y) to (a x + c y, b x + d y), in 16.16 fixed point.
    """
    all_data: Any = frame.side_data
    found = next((bytes(data) for data in all_data if data.type.name == "DISPLAYMATRIX"), None)
    if found is None:
        return lambda image: image, False
    a, b, _, c, d = np.frombuffer(found, np.int32, 5).tolist()
    turned = abs(b) > abs(a)
    flip_x, flip_y = (c < 0, b < 0) if turned else (a < 0, d < 0)
    steps = slice(None, None, -1 if flip_y else 1), slice(None, None, -1 if flip_x else 1)
    return lambda image: (image.swapaxes(0, 1) if turned else image)[steps], turned
