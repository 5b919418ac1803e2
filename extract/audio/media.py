"""Decode the audio of any media file to a 16 kHz mono waveform with PyAV, which carries its own FFmpeg.

Reading imports no torch, so that decoding processes start at once; resampling does.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.audio.resampling import MARGIN_SECONDS, resample
from extract.audio.structure import (
    EXACT_KINDS,
    TOLERANCE_SECONDS,
    hole,
    is_cut_off,
    is_whole_flac_frame,
    mended,
    second_file,
    stated_seconds,
)
from extract.audio.track import Track, choose_track, clock_zero, why
from extract.errors import MediaError
from extract.modality.protocol import Item
from extract.settings import DEFAULT, SAMPLE_RATE, DecodeOptions

# Demuxers that open other files than the one named. FFmpeg chooses by content, whatever the suffix.
_PLAYLISTS = frozenset({"concat", "dash", "hls", "imf", "sdp"})
# A stated length that differs from what the bytes suggest by more than this factor is checked.
_DOUBTED = 1.5
_WAV_SUFFIXES = (".wav", ".wave", ".rf64", ".bwf")
_CHUNKED_SUFFIXES = (*_WAV_SUFFIXES, ".w64", ".aif", ".aiff", ".aifc")


@dataclass(frozen=True, slots=True, eq=False)
class Waveform(Item):
    """Decoded audio. Its `seconds` beyond the cut are those that the file states, or that its packets add up to.

    Attributes:
        samples: (samples,) float32, mono, not normalised; cut to the maximum length at 16 kHz, and up to
            `MARGIN_SECONDS` longer at the rate of the file.
        rate: Hz.
        times: (rows, 2) float64, start and end of each frame of the file's video in seconds, where these are the rows.
    """

    samples: NDArray[np.float32]
    rate: int = SAMPLE_RATE
    times: NDArray[np.float64] | None = None

    def at_16_khz(self, max_seconds: float | None) -> "Waveform":
        """Resample and cut; a long clip stays empty."""
        if self.long:
            return self
        end = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)
        return replace(self, samples=resample(self.samples, self.rate)[:end], rate=SAMPLE_RATE)


def decode(path: Path, max_seconds: float | None = 12.0, options: DecodeOptions = DEFAULT) -> Waveform:
    """Read the first `max_seconds` of a file's audio track, and resample it.

    Raises:
        MediaError: see `read`.
    """
    return read(path, max_seconds, options).at_16_khz(max_seconds)


def read(
    path: Path, max_seconds: float | None, options: DecodeOptions = DEFAULT, longest: float = math.inf
) -> Waveform:
    """Read the first `max_seconds` of one audio track of a file, at the rate of the file.

    A sample is placed at its time on the container's clock (`track`): silence fills late starts and gaps. Channels
    are averaged in float32 (swresample's downmix is 3 dB louder).

    Args:
        path: of the file.
        max_seconds: to read; decoding stops there. None reads the whole track.
        options: which track is read, and whether a file that is cut off is used.
        longest: seconds up to which a whole track is read; a longer one gives an empty `Item.long`.

    Raises:
        MediaError: the file cannot be read, with the reason.
    """
    with OpenFile.open(path, options) as file:
        mono = file.track.mono((longest if max_seconds is None else max_seconds) + MARGIN_SECONDS)
        if max_seconds is None and not file.track.ended:
            return Waveform(samples=mono[:0], seconds=math.nan, track=file.note, rate=file.track.rate, long=True)
        problem, seconds = file.outcome()
        refuse_infinite(mono, file.track.rate)
        return Waveform(samples=mono, seconds=seconds, track=file.note, cut_off=problem, rate=file.track.rate)


def refuse_infinite(mono: NDArray[np.float32], rate: int, start: float = 0.0) -> None:
    """Raise `MediaError` for a sample that is not finite; `start` is the time of the first sample."""
    finite = np.isfinite(mono)
    if not finite.all():
        first = start + int(np.argmin(finite)) / rate
        raise MediaError(f"has samples that are not finite (NaN or infinity), the first at {first:.3f} s")


class OpenFile:
    """A media file that is being decoded.

    Attributes:
        track: the track to decode.
        note: which track that is, where the file has several, else "".
    """

    def __init__(self, container: av.container.InputContainer, path: Path, options: DecodeOptions) -> None:
        self._container, self._path, self._options = container, path, options
        stream, self.note = choose_track(container, options.track)
        zero = clock_zero(container)
        self._stated = stated_seconds(container, stream, path, zero)
        self.track = Track(container, stream, zero)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, options: DecodeOptions) -> "Iterator[OpenFile]":
        """Open a file; errors of FFmpeg and of the system in this context become a `MediaError`."""
        check_file(path)
        with contextlib.ExitStack() as opened:
            container = open_container(path, opened)
            try:
                yield cls(container, path, options)
            except MediaError:
                raise
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise MediaError(f"cannot be decoded ({why(error)})") from error

    def outcome(self) -> tuple[str, float]:
        """Return why the file is incomplete or "", and the length of the medium, once the track is decoded.

        Raises:
            MediaError: it is incomplete, and the options do not allow that.
        """
        container, path, track, kind = self._container, self._path, self.track, self._container.format.name
        stated = None if track.clock.broken else self._stated
        problem = _problem(path, kind, track, stated)
        if problem and not (self._options.allow_truncated and track.seconds):
            raise MediaError(problem)
        alone = sum(not s.disposition & av.stream.Disposition.attached_pic for s in container.streams) == 1
        return problem, track.seconds if track.ended else _whole_length(track, stated, path, kind, alone=alone)


def header_seconds(path: Path, track: int | None = None) -> float | None:
    """Return the length of an audio track that the file's header states, or None. Nothing is decoded."""
    try:
        with av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"}) as container:
            stream, _ = choose_track(container, track)
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return container.duration / 1e6 if container.duration else None
    except (av.error.FFmpegError, OSError, ValueError, MediaError):
        return None


def open_container(path: Path, opened: contextlib.ExitStack) -> av.container.InputContainer:
    """Open a file for reading, until `opened` is closed.

    Raises:
        MediaError: FFmpeg cannot read it, or it is a playlist.
    """
    suffix = path.suffix.lower()
    options = {"protocol_whitelist": "file"}
    if suffix in _WAV_SUFFIXES:
        # FFmpeg would look through a whole WAV file for hidden DTS, which takes longer than decoding it
        options["max_probe_packets"] = "8"
    try:
        mended_file = mended(path) if suffix in _CHUNKED_SUFFIXES else None
        place: Any = f"file:{path}" if mended_file is None else opened.enter_context(mended_file)
        container = opened.enter_context(av.open(place, metadata_errors="ignore", options=options))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"is not a media file that FFmpeg can read ({why(error)})") from error
    if container.format.name in _PLAYLISTS:
        raise MediaError("is a playlist that points to other files, not a media file")
    return container


def check_file(path: Path) -> None:
    """Raise `MediaError` for what is no file with content: a folder, nothing, an empty file, an unreadable one."""
    try:
        if path.is_dir():
            raise MediaError("is a folder, not a media file")
        if not path.exists():
            raise MediaError("does not exist")
        if path.stat().st_size == 0:
            raise MediaError("is empty (0 bytes)")
    except OSError as error:  # a folder without permission, a name that is too long, a broken disk
        raise MediaError(f"cannot be read ({why(error)})") from error


def _problem(path: Path, kind: str, track: Track, stated: float | None) -> str:
    """Return why a file is incomplete, or "". Damage after the stated end is trailing data, and harmless.

    Raises:
        MediaError: there is no sound at all.
    """
    seconds = track.seconds
    reached = stated is not None and seconds >= stated - (0.0005 if kind in EXACT_KINDS else TOLERANCE_SECONDS)
    if track.damage and not (seconds and reached):
        return f"is damaged or truncated at {seconds:.2f} s ({track.damage})"
    if track.resumes:
        return (
            f"is damaged at {seconds:.2f} s, where it should end, and sound follows ({track.damage}); where files "
            "were joined, join their sound instead (ffmpeg's concat filter)"
        )
    if not seconds:
        raise MediaError("has an audio track without a single sample")
    if track.gap and (broken := hole(path, kind, track.end)):
        return f"is damaged at {track.gap[0]:.2f} s, where {track.gap[1]:.2f} s of sound are missing ({broken})"
    if not track.ended:
        return ""
    if (second := second_file(path, kind, track.end)) is not None:
        return (
            f"is two files in one: {seconds:.2f} s could be decoded, and another file begins at byte {second}; split "
            "them, or join their sound (ffmpeg's concat filter)"
        )
    length = "" if stated is None else f" of the {stated:.2f} s that it states"
    if kind == "flac" and not reached and not is_whole_flac_frame(b"" if track.last is None else bytes(track.last)):
        return f"is truncated: {seconds:.2f} s could be decoded{length}, and its last frame is broken"
    if kind != "flac" and length and not reached:
        return f"is truncated: {seconds:.2f} s could be decoded{length}"
    if is_cut_off(path, kind):
        return f"is truncated: it ends after {seconds:.2f} s in the middle of its data"
    return ""


def _whole_length(track: Track, stated: float | None, path: Path, kind: str, *, alone: bool) -> float:
    """Return the length of a medium of which only the start was decoded; NaN where it is unknown.

    The header's length is used, unless the bytes decoded so far show that it belongs to another file, as after a cut
    without decoding, or in joined files.
    """
    size = path.stat().st_size
    if stated is not None and stated >= track.seconds - TOLERANCE_SECONDS:
        by_bytes, first, last = stated, track.first, track.end
        if alone and first is not None and last is not None and last > first:
            by_bytes = track.seconds * (size - first) / (last - first)
        if by_bytes / _DOUBTED <= stated <= by_bytes * _DOUBTED:
            return max(track.seconds, stated)
    measured = track.measure(size)
    return math.nan if second_file(path, kind, track.end) else measured
