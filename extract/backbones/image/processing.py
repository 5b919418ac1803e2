"""Prepare crops as a checkpoint's own image processor does: resize, crop, rescale, normalise."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from extract.backbones.checkpoint import Checkpoint
from extract.errors import BackboneError

Prepare = Callable[[Sequence[NDArray[np.uint8]]], Tensor]
"""(height, width, 3) uint8 RGB each → (images, 3, height, width) float32."""


def load_processor(checkpoint: Checkpoint) -> Prepare:
    """Return the function of the checkpoint's image processor.

    It is the library's on Pillow, whether torchvision is installed or not, whose resampling differs in single levels.
    DINOv3's exists on torchvision only, and is computed here.

    Raises:
        BackboneError: the library cannot make it.
    """
    if str(checkpoint.preprocessor.get("image_processor_type")).startswith("DINOv3ViTImageProcessor"):
        return partial(_as_dinov3, checkpoint.preprocessor)
    import transformers

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a processor that cannot be built raises many types
        first_line = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"{checkpoint.folder}: transformers {transformers.__version__} cannot build its image processor "
            f"({type(error).__name__}: {first_line})"
        ) from error
    return partial(_by_library, processor)


def _by_library(processor: Any, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    pixels: Tensor = processor(list(images), return_tensors="pt")["pixel_values"]
    return pixels


def _as_dinov3(settings: Mapping[str, Any], images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Rescale first, then resize in float32 with antialiasing, then normalise."""
    size = settings.get("size", {"height": 224, "width": 224})
    mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    found = []
    for image in images:
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        if settings.get("do_rescale", True):
            pixels = pixels * settings.get("rescale_factor", 1 / 255)
        if settings.get("do_resize", True):
            pixels = functional.interpolate(
                pixels, (size["height"], size["width"]), mode="bilinear", antialias=True, align_corners=False
            )
        found.append(pixels)
    pixels = torch.cat(found)
    return (pixels - mean) / std if settings.get("do_normalize", True) else pixels
