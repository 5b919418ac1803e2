"""Masked pooling over time."""

import torch
from torch import Tensor


def valid(lengths: Tensor, frames: int) -> Tensor:
    """(batch, frames) mask, True where a frame belongs to its clip."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def time_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, dim), the mean over each clip's own frames."""
    mask = valid(lengths, frames.shape[1]).unsqueeze(-1)
    return torch.where(mask, frames, 0.0).sum(dim=1) / lengths[:, None]


def last_valid(frames: Tensor, lengths: Tensor) -> Tensor:
    """(batch, frames, dim) → (batch, dim), each clip's last own frame."""
    return frames[torch.arange(len(frames), device=frames.device), lengths - 1]
