"""What backbones of faces have in common: a row per picture, zeros where there is no face, unless black ones count."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from extract.backbones.protocol import Features
from extract.faces.reading import FaceCrops


def spread(clips: Sequence[FaceCrops], found: Tensor) -> Features:
    """Return the features of clips.

    Args:
        clips: of a batch.
        found: (rows of all clips that have features, dim), in order.
    """
    valid = torch.from_numpy(np.concatenate([clip.computed for clip in clips]))
    frames = found.new_zeros(len(valid), found.shape[1])
    frames[valid.to(found.device)] = found
    times = [clip.times for clip in clips if clip.times is not None]
    return Features(
        frames,
        [len(clip.valid) for clip in clips],
        times=torch.from_numpy(np.concatenate(times)) if times else None,
        valid=valid,
    )


def spread_blocks(blocks: Iterable[Tensor], embed: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield the features of each block of (rows, side, side, 3) uint8 crops; black ones are computed once."""
    black: Tensor | None = None
    for block in blocks:
        seen = block.flatten(1).amax(dim=1) > 0
        found = embed(block[seen])
        frames = found.new_empty(len(block), found.shape[1])
        frames[seen] = found
        if not seen.all():
            black = embed(block[~seen][:1]) if black is None else black
            frames[~seen] = black
        yield frames
