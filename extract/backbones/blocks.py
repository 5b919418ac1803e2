"""Cut a clip that comes in blocks of any length into pieces of one length, for backbones that compute it piecewise."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def regrouped(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield pieces of `size` along the first axis; the last one may be shorter, and is not empty."""
    held: list[Tensor] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) < size:
            continue
        *pieces, rest = torch.cat(held).split(size)
        yield from pieces
        if len(rest) == size:
            yield rest
        held = [rest] if len(rest) < size else []
    if sum(map(len, held)):
        yield torch.cat(held)
