"""What backbones of faces have in common: a row per picture, zeros where there is no face, unless black ones count."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from extract.backbones.protocol import Features

GROUP = 64
"""Crops computed together where no gradients are kept, so that memory does not grow with a clip."""


class Faces(Protocol):
    """What a backbone reads of a clip; see `extract.faces.reading.FaceCrops`."""

    @property
    def faces(self) -> Sequence[NDArray[np.uint8]]:
        """The images of the rows that have features."""

    @property
    def computed(self) -> NDArray[np.bool_]:
        """(rows,) whether a row has features."""

    @property
    def times(self) -> NDArray[np.floating] | None:
        """(rows, 2) start and end in seconds; None where rows have a fixed hop."""


def spread(clips: Sequence[Faces], found: Tensor) -> Features:
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
        [len(clip.computed) for clip in clips],
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


def in_groups(
    module: nn.Module,
    embed: Callable[[Sequence[NDArray[np.uint8]]], Tensor],
    faces: Sequence[NDArray[np.uint8]],
    empty: Tensor,
) -> Tensor:
    """Compute crops together where gradients are kept, else a few at a time.

    Args:
        module: keeps gradients if a weight of it learns.
        embed: maps crops to (crops, dim).
        faces: (height, width, 3) uint8 each.
        empty: (0, dim), the result where there are none.
    """
    if not faces:
        return empty
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in module.parameters())
    step = len(faces) if learns else GROUP
    return torch.cat([embed(faces[at : at + step]) for at in range(0, len(faces), step)])


def keep_statistics(module: nn.Module) -> None:
    """Let every batch normalisation in a module use its running statistics, and leave them as they are."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
