"""Reduce pictures and crops by averaging areas, with summed-area tables: a level or a crop costs its own pixels only.

An output pixel is the mean of all input pixels that it touches, as in torch's `interpolate(mode="area")`, to which
results are equal up to rounding. torch reads the whole picture again for each level of the pyramid, and one crop at a
time.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad


class AreaTable:
    """Sums over rectangles of a batch of pictures.

    Args:
        images: (batch, height, width, 3) uint8.
    """

    def __init__(self, images: Tensor) -> None:
        _, self.height, self.width, _ = images.shape
        # 255 for each pixel of a picture overflows int32 above 8.4 megapixels; differences of sums wrap back
        self._sums = pad(images, (0, 0, 1, 0, 1, 0)).int()  # (batch, height + 1, width + 1, 3)
        self._sums.cumsum_(2, dtype=torch.int32)  # of int32, and in place: a third of the time of uint8
        if images.device.type == "cpu":  # torch's cumsum over an outer axis takes four times as long
            for above, row in pairwise(self._sums.unbind(1)):
                row += above
        else:
            self._sums.cumsum_(1, dtype=torch.int32)

    def resized(self, height: int, width: int) -> Tensor:
        """Return the pictures at another size: (batch, 3, height, width) float32 in [-1, 1]."""
        device = self._sums.device
        top, bottom = _bins(torch.tensor(self.height, device=device), height)
        left, right = _bins(torch.tensor(self.width, device=device), width)
        rows = self._sums.index_select(1, bottom).sub_(self._sums.index_select(1, top))
        sums = rows.index_select(2, right).sub_(rows.index_select(2, left))
        return _scaled(sums, (bottom - top)[:, None] * (right - left)).permute(0, 3, 1, 2)

    def crops(self, pictures: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return parts of pictures as squares: (crops, 3, side, side) float32 in [-1, 1].

        Args:
            pictures: (crops,) int64, the picture in the batch of each crop.
            boxes: (crops, 4) int64, left, top, right, bottom, within the picture; right and bottom are excluded.
            side: pixels.
        """
        left, top, right, bottom = boxes.unbind(1)
        y0, y1 = (top[:, None] + edge for edge in _bins(bottom - top, side))  # (crops, side)
        x0, x1 = (left[:, None] + edge for edge in _bins(right - left, side))
        flat = self._sums.flatten(0, 2)
        first = pictures[:, None] * (self.height + 1)

        def corner(y: Tensor, x: Tensor) -> Tensor:
            at = ((first + y) * (self.width + 1))[:, :, None] + x[:, None]
            return flat.index_select(0, at.flatten()).reshape(-1, side, side, 3)

        sums = corner(y1, x1).sub_(corner(y0, x1)).sub_(corner(y1, x0)).add_(corner(y0, x0))
        return _scaled(sums, (y1 - y0)[:, :, None] * (x1 - x0)[:, None]).permute(0, 3, 1, 2)


def _bins(size: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Return first and last + 1 input pixel of each output pixel: (..., out) each, for inputs of `size` pixels."""
    steps = torch.arange(out, device=size.device)
    return size[..., None] * steps // out, -(-size[..., None] * (steps + 1) // out)


def _scaled(sums: Tensor, counts: Tensor) -> Tensor:
    return (sums * (1 / (128 * counts[..., None]))).sub_(127.5 / 128)
