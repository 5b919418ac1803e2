"""Decoded audio of many clips in one memory map: decoded once, read by every process and every run.

`emi-audio-….npy` holds the clips one after another at 16 kHz, mono and cut; `emi-audio.json` gives the place of each,
and its file (path, size and time of change). Samples are 16-bit integers if these hold every clip exactly, as they do
for 16 kHz PCM. That takes half the memory of float32, which resampled or lossy audio needs to equal the waveform that
extraction sees.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.paths import StrPath, readable
from cache.system.atomic_file import write_atomically
from cache.system.machine import available_cores
from extract.audio.media import decode
from extract.audio.modality import AUDIO
from extract.errors import MediaError
from extract.failures import Failure, Note, write_failures, write_truncated
from extract.modality.decoding import Decoders
from extract.settings import DECODER, DEFAULT, RESAMPLER, SAMPLE_RATE, DecodeOptions
from extract.sources import Source

SAMPLES, INDEX, LOCK = "emi-audio-{}.npy", "emi-audio.json", "emi-audio.lock"
FULL_SCALE = 32768.0
AHEAD = 64
"""Clips decoded ahead of the one being written; with 12 s each, 49 MB."""
IN_PROCESSES_FROM = 200


@dataclass(frozen=True)
class Audio:
    """An opened memory map.

    Attributes:
        samples: (total samples,) int16 or float32, read-only by convention.
        starts: by clip id, where it begins.
        lengths: by clip id, its samples.
        checksums: by clip id, CRC-32C of what was decoded, as float32.
        failures: the clips that could not be read.
        notes: what the user should know about files that were used: which of several tracks, cut off.
    """

    samples: Tensor
    starts: Mapping[str, int]
    lengths: Mapping[str, int]
    checksums: Mapping[str, int]
    failures: Sequence[Failure]
    notes: Sequence[Note] = ()

    def sha256(self, clips: Iterable[str]) -> str:
        """Return a hash of the audio of some clips."""
        lines = (f"{clip} {self.lengths[clip]} {self.checksums[clip]}\n" for clip in clips)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


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
    place = Path(folder)
    try:
        index = json.loads((place / INDEX).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(index, dict) or index.get("recipe") != _recipe(max_seconds, dtype, options):
        return None
    clips, failed = index["clips"], index["failures"]
    known = {**failed, **clips}
    if any(known.get(source.id, {}).get("file") != _identity(source.path) for source in sources):
        return None
    try:
        samples = np.load(place / index["samples"], mmap_mode="c")  # copy on write: torch knows no read-only arrays
    except (OSError, ValueError):
        return None
    return Audio(
        torch.from_numpy(samples),
        {clip: entry["start"] for clip, entry in clips.items()},
        {clip: entry["samples"] for clip, entry in clips.items()},
        {clip: entry["crc32c"] for clip, entry in clips.items()},
        [Failure(s.id, readable(str(s.path)), failed[s.id]["reason"]) for s in sources if s.id in failed],
        [Note(s.id, readable(str(s.path)), **clips[s.id]["note"]) for s in sources if "note" in clips.get(s.id, {})],
    )


def decode_audio(
    folder: StrPath,
    sources: Sequence[Source],
    max_seconds: float,
    dtype: str = "auto",
    options: DecodeOptions = DEFAULT,
    *,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Decode the clips into the folder's memory map, which replaces what is there once it is whole.

    One process at a time; another that waits for the same clips finds them done. A map that is in use keeps its file.
    Clips that cannot be read are listed in failures.csv beside it, those used in part in truncated.csv; the map holds
    the others.

    Args:
        folder: made where missing.
        sources: what to decode.
        max_seconds: cut of each clip.
        dtype: "auto" or "int16"; see `FinetuneSettings.audio_dtype`.
        options: what of each file is decoded.
        on_progress: called after each clip with clips done, of how many, and its seconds.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place / LOCK):
        found = open_audio(place, sources, max_seconds, dtype, options)
        if found is None or found.failures:
            _decode_locked(place, sources, max_seconds, dtype, options, on_progress)


def mended(failures: Sequence[Failure], max_seconds: float, options: DecodeOptions = DEFAULT) -> bool:
    """Return whether a clip that could not be read can be read now: the file may not have been the reason."""
    for failure in failures:
        with contextlib.suppress(MediaError, OSError, MemoryError):
            decode(Path(failure.path), max_seconds, options)
            return True
    return False


def _decode_locked(
    place: Path,
    sources: Sequence[Source],
    max_seconds: float,
    dtype: str,
    options: DecodeOptions,
    on_progress: Callable[[int, int, float], None] | None,
) -> None:
    clips: dict[str, Any] = {}
    failures: list[Failure] = []
    notes: list[Note] = []
    old = {*place.glob(SAMPLES.format("*")), *place.glob(SAMPLES.format("*") + ".*")}
    name = SAMPLES.format(os.urandom(4).hex())
    with _Arena(place / f"{name}.tmp", exact=dtype == "auto") as arena:
        for done, (source, decoded) in enumerate(_decoded(sources, max_seconds, options), 1):
            seconds = 0.0
            if isinstance(decoded, Failure):
                failures.append(decoded)
            else:
                seconds = min(max_seconds, decoded.seconds)
                entry = {"start": arena.total, "samples": len(decoded.samples), "file": _identity(source.path)}
                clips[source.id] = entry | {"crc32c": google_crc32c.value(decoded.samples.tobytes())}
                if decoded.track or decoded.cut_off:
                    notes.append(Note(source.id, readable(str(source.path)), decoded.track, decoded.cut_off))
                    clips[source.id] |= {"note": {"track": decoded.track, "cut_off": decoded.cut_off}}
                arena.append(decoded.samples)
            if on_progress:
                on_progress(done, len(sources), seconds)
    os.replace(place / f"{name}.tmp", place / name)
    places = {source.id: source.path for source in sources}
    failed = {f.id: {"file": _identity(places[f.id]), "reason": f.reason} for f in failures}
    content = {"recipe": _recipe(max_seconds, dtype, options), "samples": name, "clips": clips, "failures": failed}
    write_atomically(place / INDEX, json.dumps(content).encode())
    for path in old:
        path.unlink(missing_ok=True)
    write_failures(str(place / name), failures, {*clips, *failed})
    write_truncated(str(place / name), notes, {*clips, *failed})


def _decoded(sources: Sequence[Source], max_seconds: float, options: DecodeOptions):  # type: ignore[no-untyped-def]
    """Yield each source with its waveform or failure, in order; a few are decoded ahead."""
    in_processes = len(sources) >= IN_PROCESSES_FROM
    with Decoders(AUDIO, available_cores(), max_seconds, options, in_processes=in_processes) as decoders:
        submitted = map(decoders.submit, sources)  # lazy: at most AHEAD + 1 waveforms wait
        ahead = list(itertools.islice(submitted, AHEAD))
        for source in sources:
            ahead.extend(itertools.islice(submitted, 1))
            yield source, ahead.pop(0).result()


class _Arena:
    """A growing .npy file of int16, converted to float32 at the first clip that 16 bits do not hold exactly."""

    def __init__(self, path: Path, *, exact: bool) -> None:
        self._path, self._exact = path, exact
        self._dtype: np.dtype[Any] = np.dtype(np.int16)
        self.total = 0

    def append(self, samples: NDArray[np.float32]) -> None:
        """Append a clip."""
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


def _identity(path: Path) -> list[Any]:
    """Return what changes when a file does."""
    try:
        stat = path.stat()
    except OSError:
        return [str(path.absolute()), -1, -1]
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns]
