"""Changes crops of faces at random in training: flip, cut and colours, the same for all crops of a clip or window."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from emi.finetuning.settings import FinetuneSettings


@dataclass(frozen=True, kw_only=True)
class CropChange:
    """What happens to the crops of one clip.

    Attributes:
        flip: whether left and right change places.
        box: left, top, right and bottom of what is cut out and scaled up again, in fractions of the crop.
        brightness: factor of all values.
        contrast: factor of the differences from the mean grey.
        saturation: factor of the differences from grey.
    """

    flip: bool
    box: tuple[float, float, float, float]
    brightness: float
    contrast: float
    saturation: float

    @classmethod
    def draw(cls, settings: FinetuneSettings, generator: torch.Generator) -> "CropChange":
        """Draw a change; the same number of draws, whatever the settings."""
        drawn = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        side = 1 - settings.random_crop * drawn[1]
        left, top = ((1 - side) * share for share in drawn[2:4])
        shares = (settings.brightness, settings.contrast, settings.saturation)
        factors = [1 + share * (2 * chance - 1) for share, chance in zip(shares, drawn[4:], strict=True)]
        return cls(
            flip=drawn[0] < settings.flip,
            box=(left, top, left + side, top + side),
            brightness=factors[0],
            contrast=factors[1],
            saturation=factors[2],
        )

    def apply(self, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a (height, width, 3) uint8 crop changed, in its own size."""
        image = Image.fromarray(crop)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.box != (0.0, 0.0, 1.0, 1.0):
            (left, top, right, bottom), (width, height) = self.box, image.size
            box = (left * width, top * height, right * width, bottom * height)
            image = image.resize(image.size, Image.Resampling.BILINEAR, box=box)
        for kind, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1.0:
                image = kind(image).enhance(factor)
        return np.asarray(image)


def change_crops(
    crops: Sequence[NDArray[np.uint8]], settings: FinetuneSettings, generator: torch.Generator
) -> list[NDArray[np.uint8]]:
    """Return the crops of one clip or window, all changed alike."""
    change = CropChange.draw(settings, generator)
    return [change.apply(crop) for crop in crops]
