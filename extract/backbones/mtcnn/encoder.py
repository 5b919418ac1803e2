"""What MTCNN's output network sees in crops of faces."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.backbones.face_rows import spread, spread_blocks
from extract.backbones.protocol import Features
from extract.faces.align import CROP_SIDE
from extract.faces.images import squares
from extract.faces.mtcnn.detector import Detector
from extract.faces.reading import FaceCrops


class MtcnnEncoder:
    """See `Backbone`: crops to activations and landmarks; rows that are not valid are zeros.

    Args:
        device: to compute on.
    """

    pads = False

    def __init__(self, device: torch.device) -> None:
        torch.backends.cudnn.allow_tf32 = False  # which would round the inputs of convolutions to 10 bits
        self._detector = Detector(device=device)

    def __call__(self, clips: Sequence[FaceCrops]) -> Features:
        """Return (rows of all clips, 266) float32."""
        return spread(clips, self._embed([face for clip in clips for face in clip.faces]))

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`; a block is (rows, side, side, 3) uint8 crops."""
        return spread_blocks(blocks, lambda crops: self._embed(list(crops.cpu().numpy())))

    def _embed(self, faces: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(self._detector.embed(squares(faces, CROP_SIDE)))

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows."""
        return num_samples
