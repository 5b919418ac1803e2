"""Augmentation of batches of features: masked spans, dropped frames, noise and mixup, each off by default."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train_head.data.splits import Batch
from train_head.data.streams import Rows
from train_head.training.augment_settings import AugmentSettings


def augment_batch(
    batch: Batch, settings: AugmentSettings, generator: torch.Generator, modality_dropout: float = 0.0
) -> Batch:
    """Change a batch of any streams at random: mixup, then dropped frames, noise, and masked spans, which stay masked.

    All streams of a clip are mixed with those of one other clip.

    Args:
        batch: frames zero behind each clip's end, time-major in memory or not; left as it is.
        settings: what is done.
        generator: where all chance comes from, on the device of the frames.
        modality_dropout: chance of each stream of a sample to be left out.

    Returns:
        The changed batch, zero behind each clip's end as well; frames may be fewer, and lie time-major in memory where
        the given ones do. What no setting changes is the object that was given.
    """
    mixing = _draw_mixing(batch.targets, settings.mixup, generator)
    streams = {}
    for name, rows in batch.streams.items():
        frames, lengths = _change(rows.frames, rows.lengths, rows.valid, mixing, settings, generator)
        streams[name] = replace(rows, frames=frames, lengths=lengths)
    if modality_dropout:
        streams = _drop_streams(streams, modality_dropout, generator)
    return Batch(streams, batch.targets if mixing is None else mixing.of_targets(batch.targets))


@dataclass(frozen=True)
class _Mixing:
    """With which other clip each is mixed, and the clip's own share: (batch,) and (batch, 1)."""

    partner: Tensor
    share: Tensor

    def of_targets(self, targets: Tensor) -> Tensor:
        """Mix the labels; one is missing where either is, since half of it would be a guess."""
        return torch.lerp(targets[self.partner], targets, self.share)


def _draw_mixing(targets: Tensor, a: float, generator: torch.Generator) -> _Mixing | None:
    """Draw partners and shares (Zhang et al., ICLR 2018); None where there is nothing to mix.

    The clip's own share is the larger one (as in MixMatch, NeurIPS 2019), since its partner's timing is distorted.
    """
    batch, device = len(targets), targets.device
    if not a or batch < 2:
        return None
    around = torch.randperm(batch, generator=generator, device=device)
    partner = torch.empty_like(around).scatter_(0, around, around.roll(1))  # one cycle: no clip is its own partner
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    drawn = torch.from_numpy(np.random.default_rng(seed).beta(a, a, batch))  # torch's own takes no generator
    return _Mixing(partner, torch.maximum(drawn, 1.0 - drawn).to(targets)[:, None])


def _change(
    frames: Tensor,
    lengths: Tensor,
    valid: Tensor | None,
    mixing: _Mixing | None,
    settings: AugmentSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Change the rows of one stream; rows that are not valid stay as they are."""
    steps = frames.transpose(0, 1)  # (frames, batch, dim), which is how the memory lies
    if mixing is not None:
        steps = _mix(steps, lengths, mixing)
    if settings.frame_dropout:
        steps, lengths = _drop_frames(steps, lengths, settings.frame_dropout, generator)
    if settings.noise:
        steps = _add_noise(steps, _inside(steps, lengths, valid), settings.noise, generator)
    if settings.time_masks:
        inside = _inside(steps, lengths, valid)
        steps = _mask_time(steps, lengths, inside, settings.time_masks, settings.time_mask_frames, generator)
    changed = mixing is not None or settings.frame_dropout or settings.noise or settings.time_masks
    return (steps.transpose(0, 1) if changed else frames), lengths


def _inside(steps: Tensor, lengths: Tensor, valid: Tensor | None = None) -> Tensor:
    """(frames, batch) True inside each clip, where rows are valid."""
    inside = torch.arange(len(steps), device=lengths.device)[:, None] < lengths
    return inside if valid is None else inside & valid.T


def _mix(steps: Tensor, lengths: Tensor, mixing: _Mixing) -> Tensor:
    """Mix each clip with its partner, stretched to its length; a clip stays as it is where either has no rows."""
    step = torch.arange(len(steps), device=lengths.device)[:, None]
    theirs = lengths[mixing.partner]
    source = ((2 * step + 1) * theirs // (2 * lengths.clamp(min=1))).minimum(theirs - 1).clamp_(min=0)
    share = torch.where(theirs[:, None] > 0, mixing.share, 1.0)
    mixed = steps[source, mixing.partner].lerp_(steps, share)
    return mixed.masked_fill_(~_inside(steps, lengths).unsqueeze(-1), 0.0)


def _drop_frames(steps: Tensor, lengths: Tensor, chance: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    drawn = torch.rand(steps.shape[:2], generator=generator, device=steps.device)
    drawn = drawn.masked_fill_(~_inside(steps, lengths), -1.0)
    keep = drawn >= chance
    keep.scatter_(0, drawn.argmax(0, keepdim=True), (lengths > 0)[None])  # every clip with rows keeps one at least
    lengths = keep.sum(0)
    source = keep.byte().argsort(dim=0, descending=True, stable=True)[: max(1, int(lengths.max()))]
    kept = steps[source, torch.arange(len(lengths), device=lengths.device)]
    return kept.masked_fill_(~_inside(kept, lengths).unsqueeze(-1), 0.0), lengths


def _drop_streams(streams: dict[str, Rows], chance: float, generator: torch.Generator) -> dict[str, Rows]:
    """Leave streams of samples out; of each sample, one that is there stays."""
    present = torch.stack([rows.present for rows in streams.values()])  # (streams, batch)
    drawn = torch.rand(present.shape, generator=generator, device=present.device).masked_fill_(~present, -1.0)
    keep = (drawn >= chance).scatter_(0, drawn.argmax(0, keepdim=True), True)
    return {
        name: replace(rows, lengths=rows.lengths * kept)
        for (name, rows), kept in zip(streams.items(), keep, strict=True)
    }


def _add_noise(steps: Tensor, inside: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    spread = steps[inside].std(0, correction=0) if inside.any() else steps.new_zeros(steps.shape[2])  # (dim,)
    noise = torch.randn(steps.shape, generator=generator, device=steps.device, dtype=steps.dtype)
    return noise.mul_(scale * spread).masked_fill_(~inside.unsqueeze(-1), 0.0).add_(steps)


def _mask_time(
    steps: Tensor, lengths: Tensor, inside: Tensor, masks: int, longest: int, generator: torch.Generator
) -> Tensor:
    """Replace spans by their clip's mean (SpecAugment, Interspeech 2019, whose features have mean 0).

    Zeros would lie outside what a backbone ever gives, and would shift the time mean that heads take.
    """
    drawn = torch.rand((2, masks, 1, len(lengths)), generator=generator, device=steps.device)
    width = (drawn[0] * (1 + (lengths // 2).clamp(max=longest))).floor()  # (masks, 1, batch)
    start = (drawn[1] * (1 + lengths - width)).floor()
    step = torch.arange(len(steps), device=steps.device)[:, None]
    masked = ((step >= start) & (step < start + width)).any(0) & inside  # (frames, batch)
    mean = steps.sum(0) / inside.sum(0).clamp(min=1)[:, None]
    return torch.where(masked.unsqueeze(-1), mean, steps)
