"""Decoded audio of many clips in one memory map: decoded once, read by every process and every run.

`emi-audio-….npy` holds the clips one after another at 16 kHz, mono and cut; `emi-audio.json` gives the place of each,
and its file (path, size and time of change). Samples are 16-bit integers if these hold every clip exactly, as they do
for 16 kHz PCM. That takes half the memory of float32, which resampled or lossy audio needs to equal the waveform that
extraction sees.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.paths import StrPath
from emi.finetuning import decode_once
from emi.finetuning.decode_once import Decoded, Layout, OnProgress, Request
from extract.audio.modality import AUDIO
from extract.settings import DECODER, DEFAULT, RESAMPLER, SAMPLE_RATE, DecodeOptions
from extract.sources import Source

SAMPLES, INDEX, LOCK = "emi-audio-{}.npy", "emi-audio.json", "emi-audio.lock"
FULL_SCALE = 32768.0
LAYOUT = Layout(modality=AUDIO, content=SAMPLES, index=INDEX, lock=LOCK, ahead=64, processes_from=200)
"""64 clips of 12 s are 49 MB."""


@dataclass(frozen=True, kw_only=True)
class Audio(Decoded):
    """An opened memory map; checksums are of the samples as float32.

    Attributes:
        samples: (total samples,) int16 or float32, read-only by convention.
    """

    samples: Tensor


def waveform(samples: Tensor, start: int, length: int) -> Tensor:
    """Return the (samples,) float32 of one clip, as `extract.audio.media.decode` gave it."""
    piece = samples[start : start + length]
    return piece.float().div_(FULL_SCALE) if piece.dtype == torch.int16 else piece.clone()


def open_audio(
    folder: StrPath,
    sources: Sequence[Source],
    max_seconds: float,
    dtype: str = "auto",
    options: DecodeOptions = DEFAULT,
) -> Audio | None:
    """Open the memory map of these clips; None if there is none, or a file has changed since."""
    found = decode_once.find_decoded(folder, LAYOUT, request_of(sources, max_seconds, dtype, options))
    if found is None:
        return None
    try:
        samples = np.load(found.content, mmap_mode="c")  # copy on write: torch knows no read-only arrays
    except (OSError, ValueError):
        return None
    return Audio(samples=torch.from_numpy(samples), **found.decoded("samples"))


def decode_audio(
    folder: StrPath,
    sources: Sequence[Source],
    max_seconds: float,
    dtype: str = "auto",
    options: DecodeOptions = DEFAULT,
    *,
    on_progress: OnProgress | None = None,
) -> None:
    """Decode the clips into the folder's memory map; see `emi.finetuning.decode_once.decode_once`.

    Args:
        folder: made where missing.
        sources: what to decode.
        max_seconds: cut of each clip.
        dtype: "auto" or "int16"; see `FinetuneSettings.audio_dtype`.
        options: what of each file is decoded.
        on_progress: called after each clip with clips done, of how many, and its seconds.
    """
    how = sources, max_seconds, dtype, options

    def is_whole() -> bool:
        found = open_audio(folder, *how)
        return found is not None and not found.failures

    def writer(path: Path) -> _Arena:
        return _Arena(path, exact=dtype == "auto")

    decode_once.decode_once(folder, LAYOUT, request_of(*how), is_whole, writer, on_progress)


def request_of(
    sources: Sequence[Source], max_seconds: float, dtype: str = "auto", options: DecodeOptions = DEFAULT
) -> Request:
    """Return which audio is wanted; arguments as of `decode_audio`."""
    recipe = _recipe(max_seconds, dtype, options)
    return Request(sources=sources, max_seconds=max_seconds, options=options, recipe=recipe)


class _Arena:
    """A growing .npy file of int16, converted to float32 at the first clip that 16 bits do not hold exactly."""

    def __init__(self, path: Path, *, exact: bool) -> None:
        self._path, self._exact = path, exact
        self._dtype: np.dtype[Any] = np.dtype(np.int16)
        self.total = 0

    def append(self, item: Any, source: Source) -> dict[str, Any]:  # noqa: ARG002
        """See `Writer`; the item is a `extract.audio.media.Decoded`."""
        entry = {"start": self.total, "samples": len(item.samples)}
        self._append(item.samples)
        return entry | {"crc32c": google_crc32c.value(item.samples.tobytes())}

    def _append(self, samples: NDArray[np.float32]) -> None:
        scaled = samples * np.float32(FULL_SCALE)
        if self._dtype == np.int16:
            rounded = np.clip(np.rint(scaled), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
            if self._exact and not np.array_equal(rounded, scaled):
                self._widen()
            else:
                samples = rounded
        self._file.write(samples.astype(self._dtype, copy=False).tobytes())
        self.total += len(samples)

    def __enter__(self) -> "_Arena":
        self._file: BinaryIO = self._path.open("wb")
        self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        """Write NumPy's header, which is padded so that it can be written again with the final length."""
        content = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.total,)}
        np.lib.format.write_array_header_1_0(self._file, content)

    def _widen(self) -> None:
        self.__exit__()
        self._dtype, wide = np.dtype(np.float32), self._path.with_name(self._path.name + ".wide")
        narrow = np.load(self._path, mmap_mode="r")
        target = np.lib.format.open_memmap(wide, "w+", self._dtype, narrow.shape, version=(1, 0))
        np.divide(narrow, np.float32(FULL_SCALE), out=target)
        target.flush()
        wide.replace(self._path)
        self._file = self._path.open("r+b")
        self._file.seek(0, os.SEEK_END)


def _recipe(max_seconds: float, dtype: str, options: DecodeOptions) -> dict[str, Any]:
    return {
        "version": 1,
        "decoder": DECODER,
        "track": options.track,
        "allow_truncated": options.allow_truncated,
        "sample_rate": SAMPLE_RATE,
        "max_seconds": max_seconds,
        "resampler": RESAMPLER,
        "audio": dtype,
    }
