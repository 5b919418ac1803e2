"""Model inputs for a batch of clips: what the backbone takes, or outputs of frozen stages; rows of cached streams."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from emi.finetuning.frozen import FrozenOutputs, hash_of
from emi.finetuning.modalities import Clips
from emi.finetuning.settings import FinetuneSettings
from extract.backbones import Divisible, Trainable
from train_head.data.splits import Split
from train_head.data.streams import Rows

WIDEST = 1024
"""Numbers per frame for which the disk must have room."""


class ClipInputs:
    """Makes model inputs from decoded clips and cached rows.

    Args:
        clips: the decoded clips.
        backbone: its frozen stages are computed here, the others by the model; a `Divisible` where any are.
        below: number of stages, from the bottom, that never learn and can be computed apart; 0 gives the clips.
        settings: whether outputs are kept.
        device: of the inputs.
        stream: name of the stream whose backbone learns; the others are cached.
    """

    def __init__(
        self,
        clips: Clips,
        backbone: Trainable,
        below: int,
        settings: FinetuneSettings,
        device: torch.device,
        stream: str,
    ) -> None:
        self.clips = clips
        self._backbone, self._below = cast(Divisible, backbone), below
        self._device, self._stream = device, stream
        self._keeps = below > 0 and settings.remember and not settings.augments_sound
        self._frozen: FrozenOutputs | None = None

    def remember(self, folder: Path, splits: Sequence[Split]) -> None:
        """Keep outputs in a folder from now on, if they are the same in every epoch and its disk has room.

        Args:
            folder: shared by the processes.
            splits: whose clips will come.
        """
        if self._keeps:
            lengths = [n for split in splits for n in split.streams[self._stream].lengths.tolist()]
            frames = sum(map(self._backbone.num_frames, lengths))
            frozen = FrozenOutputs(folder)
            self._frozen = frozen if frozen.has_room(frames, WIDEST) else None

    def forget(self) -> None:
        """Delete what is kept; outputs are computed each time from now on."""
        if self._frozen is not None:
            self._frozen.remove()
        self._frozen = None

    def __call__(
        self, split: Split, rows: Sequence[int], noise: torch.Generator | None = None
    ) -> tuple[list[Any], list[int], int, dict[str, Rows]]:
        """Return the arguments of `BackboneWithHead.predict` for some samples; media are augmented if noise is given.

        Args:
            split: with the decoded clips and the cached streams.
            rows: numbers of the samples.
            noise: where the chance of augmentation comes from.
        """
        return *self.of_media(split, rows, noise), self._rows(split, rows)

    def of_media(
        self, split: Split, rows: Sequence[int], noise: torch.Generator | None = None
    ) -> tuple[list[Any], list[int], int]:
        """Return the arguments of `BackboneWithHead.frames` for some samples; see `__call__`."""
        clips = self.clips.inputs(split.streams[self._stream], rows, noise)
        inputs = self._below_outputs(clips) if self._below else clips
        lengths = [len(clip) for clip in clips] if self._below else []
        moved = [each.to(self._device, non_blocking=True) if isinstance(each, Tensor) else each for each in inputs]
        return moved, lengths, self._below

    def media_rows(self, split: Split, longest: float) -> Split:
        """Return the valid rows of a split's media in samples of at most so many rows, for `of_media` alone."""
        rows = split.streams[self._stream].only_valid().chopped(int(longest))
        return replace(split, streams={self._stream: rows}, at=None, windows=None)

    def _rows(self, split: Split, rows: Sequence[int]) -> dict[str, Rows]:
        """Return the rows of all streams; of the learned one without features, and not at all of sound."""
        named = [name for name, stream in split.streams.items() if stream.rows.ndim > 1]
        return {name: found.to(self._device) for name, found in split.of_streams(named).batch(rows).streams.items()}

    def _below_outputs(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of the frozen stages: kept ones, or all computed now and kept."""
        names = [hash_of(clip) if self._frozen is not None else b"" for clip in clips]
        kept = [None if self._frozen is None else self._frozen.get(name) for name in names]
        found = [output for output in kept if output is not None]
        if len(found) == len(clips):
            return found
        with torch.no_grad():  # all anew: whatever a kill left, a batch gives the same bytes
            fresh = list(self._backbone.below([clip.to(self._device) for clip in clips], self._below))
        if self._frozen is not None:
            try:
                for name, output in zip(names, fresh, strict=True):
                    self._frozen.put(name, output)
            except OSError:  # the disk is full
                self.forget()
        return [new if known is None else known for known, new in zip(kept, fresh, strict=True)]
