"""Masked pooling over time. `frames` may have any memory layout; training passes time-major views."""

import torch
from torch import Tensor

SPREAD_FLOOR = 1e-8
"""Added to a variance before its root, whose slope at 0 (clips of one frame) would be infinite."""


def valid(lengths: Tensor, frames: int) -> Tensor:
    """(batch, frames) mask, True where a frame belongs to its clip."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def masked(frames: Tensor, lengths: Tensor, filler: float = 0.0) -> Tensor:
    """(batch, frames, dim) with `filler` behind each clip's end; whatever stood there, NaN too, gets gradient 0."""
    return torch.where(valid(lengths, frames.shape[1]).unsqueeze(-1), frames, filler)


def time_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, dim), the mean over the frames of each clip."""
    return masked(frames, lengths).sum(dim=1) / lengths[:, None]


def mean_spread_max(frames: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, 3 dim), over the frames of each clip.

    The spread is sqrt(population variance + `SPREAD_FLOOR`).
    """
    own = masked(frames, lengths)
    mean = own.sum(dim=1) / lengths[:, None]
    apart = masked(own - mean.unsqueeze(1), lengths)
    spread = (apart.square().sum(dim=1) / lengths[:, None] + SPREAD_FLOOR).sqrt()
    return torch.cat([mean, spread, masked(frames, lengths, -torch.inf).amax(dim=1)], dim=1)


def last_valid(frames: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, dim), the last frame of each clip."""
    return frames[torch.arange(len(frames), device=frames.device), lengths - 1]


def segment_lengths(lengths: Tensor, size: int) -> Tensor:
    """(batch,) int64, how many segments of `size` frames a clip has, the last one perhaps partial."""
    return (lengths + size - 1).div(size, rounding_mode="floor")


def segment_means(frames: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Means over consecutive segments of `size` frames.

    Args:
        frames: (batch, frames, dim).
        lengths: (batch,) int64; `segment_lengths` counts the segments they leave.
        size: frames per segment; the last one of a clip averages the frames it has.

    Returns:
        (batch, ceil(frames / size), dim), zeros behind a clip's last segment.
    """
    own = masked(frames, lengths)
    whole, rest = divmod(frames.shape[1], size)
    sums = own[:, : whole * size].unflatten(1, (whole, size)).sum(dim=2)
    if rest:
        sums = torch.cat([sums, own[:, whole * size :].sum(dim=1, keepdim=True)], dim=1)
    begins = torch.arange(sums.shape[1], device=lengths.device) * size
    counts = (lengths[:, None] - begins).clamp(min=1, max=size)  # (batch, segments)
    return sums / counts.unsqueeze(-1)


def reverse(frames: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, dim) with each clip reversed within its length; the padding stays behind it.

    The result is time-major in memory, as recurrent layers read it.
    """
    batch, steps, dim = frames.shape
    step = torch.arange(steps, device=lengths.device)[:, None]
    source = torch.where(step < lengths, lengths - 1 - step, step)  # (frames, batch)
    rows = source * batch + torch.arange(batch, device=lengths.device)
    turned = frames.transpose(0, 1).reshape(steps * batch, dim).index_select(0, rows.flatten())
    return turned.unflatten(0, (steps, batch)).transpose(0, 1)
