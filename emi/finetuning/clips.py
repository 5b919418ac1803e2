"""What the model takes of some clips: their waveforms, or what the frozen stages have given of them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from emi.finetuning.audio import waveform
from emi.finetuning.frozen import FrozenOutputs, fits_on_disk, hash_of
from emi.finetuning.settings import FinetuneSettings
from emi.finetuning.waveforms import WaveformAugment
from extract.backbones import Divisible, Trainable
from train_head.data.splits import Split

WIDEST = 1024
"""Numbers per frame for which room on the disk is asked."""


class ClipInputs:
    """Makes a model's inputs out of decoded audio.

    Args:
        backbone: its frozen stages are computed here, the others by the model; a `Divisible`, where there are any.
        below: how many stages are frozen for good and can be computed apart; 0 gives waveforms.
        settings: how waveforms are augmented, and whether outputs are kept.
        device: where the inputs are to be.
    """

    def __init__(self, backbone: Trainable, below: int, settings: FinetuneSettings, device: torch.device) -> None:
        self._backbone, self._below = cast(Divisible, backbone), below
        self._settings, self._device = settings, device
        self._augment = WaveformAugment(settings) if settings.augments else None
        self._frozen: FrozenOutputs | None = None
        self._path: Path | None = None

    def remember(self, path: Path, others: Collection[Path], splits: Sequence[Split]) -> None:
        """Keep outputs in a file from now on, where they are always the same and its disk has room.

        Args:
            path: of this process; continued where it is there.
            others: where other processes keep theirs, to be read.
            splits: whose clips will come.
        """
        self._path = path
        if self._below and self._settings.remember and self._augment is None:
            frames = [self._backbone.num_frames(n) for split in splits for n in split.lengths.tolist()]
            if fits_on_disk([path, *others], frames, WIDEST):
                self._frozen = FrozenOutputs(path, others)

    def forget(self) -> None:
        """Delete what was kept, in this run of the program or an earlier one."""
        self._frozen = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __call__(
        self, split: Split, rows: Sequence[int], noise: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[int], int]:
        """The arguments of `BackboneWithHead.frames` for some clips of a split; augmented where noise is given."""
        clips = self._decoded(split, rows, noise)
        if not self._below:
            return [clip.to(self._device, non_blocking=True) for clip in clips], [], 0
        names = [hash_of(clip) if self._frozen is not None else b"" for clip in clips]
        found = [None if self._frozen is None else self._frozen.get(name) for name in names]
        if any(output is None for output in found):  # all anew: whatever a kill left, a batch gives the same bytes
            with torch.no_grad():
                fresh = self._backbone.below([clip.to(self._device) for clip in clips], self._below)
            found = [new if known is None else known for known, new in zip(found, fresh, strict=True)]
            self._keep(names, fresh)
        outputs = [output.to(self._device, non_blocking=True) for output in found if output is not None]
        return outputs, [len(clip) for clip in clips], self._below

    def _keep(self, names: Sequence[bytes], outputs: Sequence[Tensor]) -> None:
        if self._frozen is None:
            return
        try:
            for name, output in zip(names, outputs, strict=True):
                self._frozen.put(name, output)
        except OSError:  # a full disk: they are computed each time from now on
            self.forget()

    def _decoded(self, split: Split, rows: Sequence[int], noise: torch.Generator | None) -> list[Tensor]:
        at = torch.as_tensor(rows)
        places = zip(split.starts[at].tolist(), split.lengths[at].tolist(), strict=True)
        clips = [waveform(split.rows, start, length) for start, length in places]
        if self._augment is not None and noise is not None:
            clips = [self._augment(clip, noise) for clip in clips]
        return clips
