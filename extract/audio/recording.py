"""A long recording, decoded and resampled in blocks, so that memory does not grow with its length."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.audio.media import OpenFile, refuse_infinite
from extract.audio.resampling import resample_blocks
from extract.settings import SAMPLE_RATE, DecodeOptions

BLOCK_SECONDS = 10.0


class SoundRecording:
    """See `extract.modality.protocol.Recording`: (samples,) float32 at 16 kHz, as `extract.audio.media.decode` gives.

    Args:
        path: of the file.
        options: which part of it is decoded.
        times: of its rows, where they are those of a video.
    """

    def __init__(self, path: Path, options: DecodeOptions, times: NDArray[np.float64] | None = None) -> None:
        self._path, self._options = path, options
        self.seconds, self.cut_off = math.nan, ""
        self.times = times
        self.valid: NDArray[np.bool_] | None = None

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """See `Recording`."""
        with OpenFile.open(self._path, self._options) as file:
            blocks = self._blocks(file)
            first = next(blocks, np.zeros(0, np.float32))  # after it the rate is known
            yield from resample_blocks(itertools.chain([first], blocks), file.track.rate or SAMPLE_RATE)
            self.cut_off, self.seconds = file.outcome()

    def _blocks(self, file: OpenFile) -> Iterator[NDArray[np.float32]]:
        end = 0
        for block in file.track.blocks(BLOCK_SECONDS):
            refuse_infinite(block, file.track.rate, end / file.track.rate)
            end += len(block)
            yield block
