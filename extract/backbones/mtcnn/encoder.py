"""What MTCNN's output network sees in aligned crops of faces."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from extract.backbones.protocol import Features
from extract.faces.mtcnn.detector import EMBEDDED, Detector
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
        valid = torch.from_numpy(np.concatenate([clip.valid for clip in clips]))
        frames = torch.zeros(len(valid), EMBEDDED)
        frames[valid] = torch.from_numpy(
            self._detector.embed(np.concatenate([clip.images[clip.valid] for clip in clips]))
        )
        times = [clip.times for clip in clips if clip.times is not None]
        return Features(
            frames,
            [len(clip.valid) for clip in clips],
            times=torch.from_numpy(np.concatenate(times)) if times else None,
            valid=valid,
        )

    def in_blocks(self, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """See `Blockwise`; a block is (rows, 112, 112, 3) uint8 crops."""
        for block in blocks:
            yield torch.from_numpy(self._detector.embed(block.cpu().numpy()))

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows."""
        return num_samples
