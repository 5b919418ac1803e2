"""Model inputs for a batch of clips: waveforms, augmented, or outputs of the frozen stages; rows of cached streams."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torchaudio
from torch import Tensor

from emi.finetuning.audio import waveform
from emi.finetuning.frozen import FrozenOutputs, hash_of
from emi.finetuning.settings import FinetuneSettings
from extract.backbones import Divisible, Trainable
from extract.settings import SAMPLE_RATE
from train_head.data.splits import Split
from train_head.data.streams import Rows

WIDEST = 1024
"""Numbers per frame for which the disk must have room."""
SNR_SPREAD_DB = 20.0


class ClipInputs:
    """Makes model inputs from decoded audio and cached rows.

    Args:
        backbone: its frozen stages are computed here, the others by the model; a `Divisible` where any are.
        below: number of stages, from the bottom, that never learn and can be computed apart; 0 gives waveforms.
        settings: how waveforms are augmented, and whether outputs are kept.
        device: of the inputs.
        stream: name of the stream that holds the audio; the others are cached.
    """

    def __init__(
        self, backbone: Trainable, below: int, settings: FinetuneSettings, device: torch.device, stream: str
    ) -> None:
        self._backbone, self._below = cast(Divisible, backbone), below
        self._device, self._stream = device, stream
        self._augment = WaveformAugment(settings) if settings.augments else None
        self._keeps = below > 0 and settings.remember and not settings.augments
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
    ) -> tuple[list[Tensor], list[int], int, dict[str, Rows]]:
        """Return the arguments of `BackboneWithHead.predict` for some clips; the audio is augmented if noise is given.

        Args:
            split: with the decoded audio and the cached streams.
            rows: numbers of the clips.
            noise: where the chance of augmentation comes from.
        """
        at = torch.as_tensor(rows)
        samples = split.streams[self._stream]
        places = zip(samples.starts[at].tolist(), samples.lengths[at].tolist(), strict=True)
        clips = [waveform(samples.rows, start, length) for start, length in places]
        if self._augment is not None and noise is not None:
            clips = [self._augment(clip, noise) for clip in clips]
        inputs = self._below_outputs(clips) if self._below else clips
        lengths = [len(clip) for clip in clips] if self._below else []
        moved = [each.to(self._device, non_blocking=True) for each in inputs]
        return moved, lengths, self._below, self._cached(split, rows)

    def _cached(self, split: Split, rows: Sequence[int]) -> dict[str, Rows]:
        others = split.of_streams([name for name in split.streams if name != self._stream])
        return {name: found.to(self._device) for name, found in others.batch(rows).streams.items()}

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


class WaveformAugment:
    """Changes waveforms at random, clip by clip: speed, gain and noise, each off by default.

    Speed is resampling, so pitch moves with it (Ko et al., Interspeech 2015, whose factors are 0.9, 1 and 1.1).

    Args:
        settings: which and how much.
    """

    def __init__(self, settings: FinetuneSettings) -> None:
        self._settings = settings
        share = round(settings.speed, 2)
        rates = [round(SAMPLE_RATE * factor) for factor in (1 - share, 1 + share)] if share else []
        # torchaudio's kernel grows with rate / gcd: whole hundredths of 16 kHz keep it small
        self._speeds = [torchaudio.transforms.Resample(rate, SAMPLE_RATE) for rate in rates]

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Change (samples,) float32 at random; speed changes the number of samples."""
        s = self._settings
        if self._speeds:
            which = int(torch.randint(len(self._speeds) + 1, (), generator=generator))
            if which:
                waveform = self._speeds[which - 1](waveform)
        if s.gain_db:
            gain = s.gain_db * (2 * float(torch.rand((), generator=generator)) - 1)
            waveform = waveform * 10 ** (gain / 20)
        if s.noise_snr:
            snr = s.noise_snr + SNR_SPREAD_DB * float(torch.rand((), generator=generator))
            noise = torch.randn(waveform.shape, generator=generator)
            waveform = waveform + noise * waveform.square().mean().sqrt() * 10 ** (-snr / 20)
        return waveform
