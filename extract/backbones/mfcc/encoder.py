"""MFCC as a backbone: 13 coefficients of 25 ms of sound, 0 to 12, with their first and second differences.

All are computed every 10 ms, and rows are those of the grid at which they start; zeros follow the end of a clip.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torchaudio.functional import compute_deltas
from torchaudio.transforms import MFCC

from extract.backbones.mfcc.layout import BANDS, COEFFICIENTS, DELTA_WINDOW, WINDOW
from extract.backbones.protocol import Features
from extract.backbones.sound_rows import STEP, Sound, padded, placed, row_starts, starts_at, times_of
from extract.settings import SAMPLE_RATE


class MfccBackbone:
    """See `extract.backbones.protocol.BlockwiseAtTimes`.

    Args:
        hop_seconds: from one row to the next, of clips without times.
        device: to compute on.
    """

    pads = False

    def __init__(self, hop_seconds: float, device: torch.device) -> None:
        self._hop, self._device = hop_seconds, device
        spectra = {"n_fft": WINDOW, "hop_length": STEP, "n_mels": BANDS, "center": False}
        self._mfcc = MFCC(SAMPLE_RATE, COEFFICIENTS, log_mels=True, melkwargs=spectra).to(device)

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows that start within a clip, where it has no times."""
        return len(row_starts(self._hop, num_samples))

    def __call__(self, sounds: Sequence[Sound]) -> Features:
        """See `Backbone`."""
        clips = [placed(sound, self._hop) for sound in sounds]
        whole = [padded(samples, _needed(starts, len(samples))) for samples, starts in clips]
        rows = [_rows(self._static(signal), starts) for signal, (_, starts) in zip(whole, clips, strict=True)]
        return Features(torch.cat(rows), list(map(len, rows)), times=times_of(sounds))

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`; the coefficients of the whole clip are held, for their differences."""
        return self._in_blocks(blocks, None)

    def at_times(self, blocks: Iterable[Tensor], times: Tensor) -> Iterator[Tensor]:
        """See `BlockwiseAtTimes`."""
        return self._in_blocks(blocks, starts_at(times))

    def _in_blocks(self, blocks: Iterable[Tensor], starts: Tensor | None) -> Iterator[Tensor]:
        held, done, parts = torch.zeros(0, device=self._device), 0, []
        for block in blocks:
            held = torch.cat([held, block])
            if len(held) >= WINDOW:
                parts.append(self._static(held))
                done += parts[-1].shape[1]
                held = held[parts[-1].shape[1] * STEP :]
        size = done * STEP + len(held)
        starts = row_starts(self._hop, size) if starts is None else starts
        rest = padded(held, _needed(starts, size) - done * STEP)
        parts += [self._static(rest)] if len(rest) >= WINDOW else []
        yield _rows(torch.cat(parts, dim=1), starts)

    def _static(self, samples: Tensor) -> Tensor:
        """(samples,) → (13, (samples - 400) // 160 + 1)."""
        return cast(Tensor, self._mfcc(samples))


def _needed(starts: Tensor, samples: int) -> int:
    """Return the samples up to the end of the last row and of the last point of the grid that lies in the clip."""
    return max(int(starts[-1]), (samples - 1) // STEP) * STEP + WINDOW


def _rows(coefficients: Tensor, starts: Tensor) -> Tensor:
    """(13, grid points) → (rows, 39) at these points."""
    first = compute_deltas(coefficients, DELTA_WINDOW)
    return torch.cat([coefficients, first, compute_deltas(first, DELTA_WINDOW)])[:, starts.to(first.device)].t()
