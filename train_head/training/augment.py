"""Augmentation of batches of features: masked spans, dropped frames, noise and mixup, each off by default."""

import numpy as np
import torch
from torch import Tensor

from train_head.training.settings import AugmentSettings


def augment(
    frames: Tensor, lengths: Tensor, targets: Tensor, settings: AugmentSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Change a batch at random: mixup, then dropped frames, noise, and masked spans, which thus stay masked.

    Args:
        frames: (batch, frames, dim) float32, zero behind each clip's end, time-major in memory or not; left as it is.
        lengths: (batch,) int64, at least 1; left as it is.
        targets: (batch, targets) float32, NaN where a label is missing; left as it is.
        settings: what is done.
        generator: where all chance comes from, on the device of `frames`.

    Returns:
        The same three, zero behind each clip's end as well; frames may be fewer, and lie time-major in memory where
        the given ones do. What no setting changes is the object that was given.
    """
    steps = frames.transpose(0, 1)  # (frames, batch, dim), which is how the memory lies
    if settings.mixup and len(lengths) > 1:
        steps, targets = _mix(steps, lengths, targets, settings.mixup, generator)
    if settings.frame_dropout:
        steps, lengths = _drop_frames(steps, lengths, settings.frame_dropout, generator)
    if settings.noise:
        steps = _add_noise(steps, lengths, settings.noise, generator)
    if settings.time_masks:
        steps = _mask_time(steps, lengths, settings.time_masks, settings.time_mask_frames, generator)
    changed = settings.mixup or settings.frame_dropout or settings.noise or settings.time_masks
    return (steps.transpose(0, 1) if changed else frames), lengths, targets


def _valid(steps: Tensor, lengths: Tensor) -> Tensor:
    """(frames, batch) True inside each clip."""
    return torch.arange(len(steps), device=lengths.device)[:, None] < lengths


def _mix(
    steps: Tensor, lengths: Tensor, targets: Tensor, a: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each clip with another one, stretched to its length, and the labels likewise (Zhang et al., ICLR 2018).

    The clip's own share is the larger one (as in MixMatch, NeurIPS 2019), since its partner's timing is distorted.
    A mixed label is missing where either is: half of it would be a guess.
    """
    batch = len(lengths)
    around = torch.randperm(batch, generator=generator, device=lengths.device)
    partner = torch.empty_like(around).scatter_(0, around, around.roll(1))  # one cycle: no clip is its own partner
    seed = int(torch.randint(2**62, (), generator=generator, device=lengths.device))
    drawn = torch.from_numpy(np.random.default_rng(seed).beta(a, a, batch))  # torch's own takes no generator
    share = torch.maximum(drawn, 1.0 - drawn).to(targets)[:, None]
    step = torch.arange(len(steps), device=lengths.device)[:, None]
    theirs = lengths[partner]
    source = ((2 * step + 1) * theirs // (2 * lengths)).minimum(theirs - 1)  # nearest to the middle of each step
    mixed = steps[source, partner].lerp_(steps, share).masked_fill_(~_valid(steps, lengths).unsqueeze(-1), 0.0)
    return mixed, torch.lerp(targets[partner], targets, share)


def _drop_frames(steps: Tensor, lengths: Tensor, chance: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    drawn = torch.rand(steps.shape[:2], generator=generator, device=steps.device)
    drawn = drawn.masked_fill_(~_valid(steps, lengths), -1.0)
    keep = drawn >= chance
    keep.scatter_(0, drawn.argmax(0, keepdim=True), True)  # every clip keeps one at least
    lengths = keep.sum(0)
    source = keep.byte().argsort(dim=0, descending=True, stable=True)[: int(lengths.max())]
    kept = steps[source, torch.arange(len(lengths), device=lengths.device)]
    return kept.masked_fill_(~_valid(kept, lengths).unsqueeze(-1), 0.0), lengths


def _add_noise(steps: Tensor, lengths: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    valid = _valid(steps, lengths)
    spread = steps[valid].std(0, correction=0)  # (dim,)
    noise = torch.randn(steps.shape, generator=generator, device=steps.device, dtype=steps.dtype)
    return noise.mul_(scale * spread).masked_fill_(~valid.unsqueeze(-1), 0.0).add_(steps)


def _mask_time(steps: Tensor, lengths: Tensor, masks: int, longest: int, generator: torch.Generator) -> Tensor:
    """Replace spans by their clip's mean (SpecAugment, Interspeech 2019, whose features have mean 0).

    Zeros would lie outside what a backbone ever gives, and would shift the time mean that heads take.
    """
    drawn = torch.rand((2, masks, 1, len(lengths)), generator=generator, device=steps.device)
    width = (drawn[0] * (1 + (lengths // 2).clamp(max=longest))).floor()  # (masks, 1, batch)
    start = (drawn[1] * (1 + lengths - width)).floor()
    step = torch.arange(len(steps), device=steps.device)[:, None]
    masked = ((step >= start) & (step < start + width)).any(0)  # (frames, batch)
    return torch.where(masked.unsqueeze(-1), steps.sum(0) / lengths[:, None], steps)
