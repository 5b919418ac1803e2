"""Decode the audio of any media file to a 16 kHz mono waveform with PyAV, which carries its own FFmpeg.

Reading imports no torch, so that decoding processes start at once; resampling does.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.container
import av.stream
import numpy as np
from numpy.typing import NDArray

from cache.sources import Medium
from extract.audio.packets import Packets, why
from extract.audio.streamed import mended
from extract.audio.structure import hole
from extract.audio.timeline import Clock, clock_zero
from extract.audio.tracks import choose_track
from extract.audio.truncation import (
    EXACT_KINDS,
    TOLERANCE_SECONDS,
    is_cut_off,
    is_whole_flac_frame,
    second_file,
    stated_seconds,
)
from extract.errors import MediaError
from extract.settings import DEFAULT, SAMPLE_RATE, DecodeOptions

if TYPE_CHECKING:
    import torchaudio

_MARGIN_SECONDS = 0.1
"""Decoded beyond the cut, so that the resampler's filter sees at the cut what it would see in the whole file."""
_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 2.0**63}
_PLAYLISTS = frozenset({"concat", "dash", "hls", "imf", "sdp"})
"""Demuxers that read other files than the one named; FFmpeg chooses by content, whatever the suffix."""
_SILENCE = ("fltp", 1)
"""Sample format and channels of the silence that is put into gaps."""
_DOUBTED = 1.5
"""A stated length this many times longer or shorter than the bytes suggest is checked."""
_OPTIONS = {"protocol_whitelist": "file"}
_WAV_OPTIONS = {"max_probe_packets": "8"}
"""FFmpeg looks through a whole WAV file for DTS in disguise, which takes longer than decoding it; 32 KiB will do."""
_WAV_SUFFIXES = (".wav", ".wave", ".rf64", ".bwf")
_CHUNKED_SUFFIXES = (".w64", ".aif", ".aiff", ".aifc")
_KERNEL_LIMIT = 1 << 24
"""Coefficients of torchaudio's resampling kernel above which its memory (4 bytes each, several copies) explodes."""


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """Decoded audio.

    Attributes:
        samples: (samples,) float32 at 16 kHz, mono, cut to the maximum length, not normalised.
        seconds: length of the medium before the cut; beyond the cut it is what the file states or its packets add up
            to, and NaN where it is not known.
        track: which audio track this is, where the file has several; else "".
        cut_off: why the file is not whole, where it is used all the same; else "".
        medium: the file it is of, where that was asked for.
    """

    samples: NDArray[np.float32]
    seconds: float
    track: str = ""
    cut_off: str = ""
    medium: Medium | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Decoded audio at the file's own rate.

    Attributes:
        samples: (samples,) float32 mono, a little longer than the cut.
        rate: Hz.
        seconds, track, cut_off: see `Waveform`.
    """

    samples: NDArray[np.float32]
    rate: int
    seconds: float
    track: str = ""
    cut_off: str = ""

    def waveform(self, max_seconds: float) -> Waveform:
        """Resample and cut."""
        samples = resample(self.samples, self.rate)[: round(max_seconds * SAMPLE_RATE)]
        return Waveform(samples, self.seconds, self.track, self.cut_off)


def decode(path: Path, max_seconds: float = 12.0, options: DecodeOptions = DEFAULT) -> Waveform:
    """Read the first `max_seconds` of a file's audio track and resample it once.

    Raises:
        MediaError: see `read`.
    """
    return read(path, max_seconds, options).waveform(max_seconds)


def read(path: Path, max_seconds: float, options: DecodeOptions = DEFAULT) -> Recording:
    """Read the first `max_seconds` of one audio track of a file; decoding stops there.

    A sample's place is its time on the container's clock (`timeline`): silence fills late starts and gaps.
    Channels are averaged in float32 (swresample's own downmix is 3 dB louder).

    Args:
        path: of the file.
        max_seconds: to read.
        options: which track, and whether a file that is cut off is used.

    Raises:
        MediaError: the file cannot be read, with the reason.
    """
    _check_file(path)
    with contextlib.ExitStack() as opened:
        container = _open(path, opened)
        stream, track = choose_track(container, options.track)
        try:
            zero = clock_zero(container)
            stated = stated_seconds(container, stream, path, zero)
            sound = _read_sound(container, stream, zero, max_seconds + _MARGIN_SECONDS)
            stated = None if sound.clock.broken else stated
            kind = container.format.name
            problem = _incomplete(path, kind, sound, stated)
            alone = (
                sum(not stream.disposition & av.stream.Disposition.attached_pic for stream in container.streams) == 1
            )
            seconds = sound.seconds if sound.ended else _whole_length(sound, stated, path, kind, alone=alone)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"cannot be decoded ({why(error)})") from error
    if problem and not (options.allow_truncated and sound.seconds):
        raise MediaError(problem)
    if not np.isfinite(sound.mono).all():
        raise MediaError(f"has samples that are not finite (NaN or infinity), the first at {_first_bad(sound):.3f} s")
    return Recording(sound.mono, sound.rate, seconds, track=track, cut_off=problem)


def resample(mono: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Bring (samples,) float32 at `rate` Hz to 16 kHz.

    Rates without a common divisor with 16 kHz (44,101 Hz, say) would need a kernel of gigabytes; those go through
    SciPy's polyphase resampler.
    """
    if rate == SAMPLE_RATE:
        return mono
    divisor = math.gcd(rate, SAMPLE_RATE)
    if (rate // divisor) * (SAMPLE_RATE // divisor) > _KERNEL_LIMIT:
        return _resample_polyphase(mono, SAMPLE_RATE // divisor, rate // divisor)
    import torch

    with torch.inference_mode():
        return np.asarray(_resampler(rate)(torch.from_numpy(mono)).numpy())


def _resample_polyphase(mono: NDArray[np.float32], up: int, down: int) -> NDArray[np.float32]:
    from scipy.signal import resample_poly

    out = resample_poly(mono.astype(np.float64), up, down, window=_lowpass(max(up, down)))
    return np.asarray(out, dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _lowpass(factor: int) -> NDArray[np.float64]:
    """SciPy's default filter for `resample_poly`, kept because designing a long one takes seconds."""
    from scipy.signal import firwin

    return np.asarray(firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)))


@functools.lru_cache(maxsize=32)
def _resampler(rate: int) -> "torchaudio.transforms.Resample":
    """Building one costs up to 160 ms, so one is kept per rate."""
    import torchaudio

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def _open(path: Path, opened: contextlib.ExitStack) -> av.container.InputContainer:
    """Open a file for reading, until `opened` is closed.

    Raises:
        MediaError: FFmpeg cannot read it, or it is a playlist.
    """
    wav = path.suffix.lower() in _WAV_SUFFIXES
    options = _OPTIONS | (_WAV_OPTIONS if wav else {})
    try:
        chunked = wav or path.suffix.lower() in _CHUNKED_SUFFIXES
        streamed = opened.enter_context(found) if chunked and (found := mended(path)) is not None else None
        place: Any = streamed or f"file:{path}"
        container = opened.enter_context(av.open(place, metadata_errors="ignore", options=options))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"is not a media file that FFmpeg can read ({why(error)})") from error
    if container.format.name in _PLAYLISTS:
        raise MediaError("is a playlist that points to other files, not a media file")
    return container


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise MediaError("is a folder, not a media file")
        if not path.exists():
            raise MediaError("does not exist")
        if path.stat().st_size == 0:
            raise MediaError("is empty (0 bytes)")
    except OSError as error:  # a folder without permission, a name that is too long, a broken disk
        raise MediaError(f"cannot be read ({why(error)})") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sound:
    """What was decoded: (samples,) at the file's rate, the first gap (start, length), whether it ended, and of what."""

    mono: NDArray[np.float32]
    rate: int
    gap: tuple[float, float] | None
    ended: bool
    packets: Packets
    clock: Clock

    @property
    def seconds(self) -> float:
        return len(self.mono) / self.rate if self.rate else 0.0


def _read_sound(
    container: av.container.InputContainer, stream: av.AudioStream, zero: float, max_seconds: float
) -> _Sound:
    """Decode up to `max_seconds`, with silence where the clock says so."""
    packets, clock, tick = Packets(container, stream), Clock(zero), float(stream.time_base or 0)
    pieces: list[tuple[tuple[str, int], NDArray[Any]]] = []
    rate, count, limit, ended, first_gap = 0, 0, 0, True, None
    for frame in _frames(packets, stream):
        if frame.sample_rate != rate:
            if rate:
                raise MediaError(f"changes its sample rate from {rate} to {frame.sample_rate} Hz; re-encode it")
            rate = frame.sample_rate
            limit = math.ceil(max_seconds * rate)
        if frame.pts is not None and (gap := clock.silence_before(frame.pts * tick, count / rate)):
            silent = min(round(gap * rate), limit - count)
            pieces.append((_SILENCE, np.zeros((1, silent), np.float32)))
            first_gap = first_gap or (count / rate, gap)
            count += silent
        if count < limit:
            pieces.append(((frame.format.name, frame.layout.nb_channels), frame.to_ndarray()))
            count += frame.samples
        if count >= limit:
            ended = False
            break
    alike = itertools.groupby(pieces, key=lambda piece: piece[0])  # one group, unless the layout changes or gaps lie in
    mono = [_mono(np.concatenate([array for _, array in group], axis=1), *layout) for layout, group in alike]
    joined = np.concatenate(mono) if mono else np.zeros(0, np.float32)
    return _Sound(mono=joined, rate=rate, gap=first_gap, ended=ended, packets=packets, clock=clock)


def _frames(packets: Packets, stream: av.AudioStream) -> Iterator[av.AudioFrame]:  # noqa: ARG001 - tests count here
    yield from packets.frames()


def _mono(array: NDArray[Any], sample_format: str, channels: int) -> NDArray[np.float32]:
    """(samples,) float32 in [-1, 1], the mean over channels, of planar (channels, samples) or packed (1, all)."""
    if not sample_format.endswith("p"):
        array = array.reshape(-1, channels).T
    kind = sample_format.removesuffix("p")
    scale = _FULL_SCALE.get(kind)
    values = array.astype(np.float32)
    if kind == "u8":
        values -= 128.0
    if scale is not None:
        values /= np.float32(scale)
    return values[0] if len(values) == 1 else values.mean(axis=0, dtype=np.float32)


def _incomplete(path: Path, kind: str, sound: _Sound, stated: float | None) -> str:
    """Return why a file is not whole, or "". Damage after the stated end is trailing rubbish and harmless.

    Raises:
        MediaError: there is no sound at all.
    """
    seconds, packets = sound.seconds, sound.packets
    tolerance = 0.0005 if kind in EXACT_KINDS else TOLERANCE_SECONDS
    reached = stated is not None and seconds >= stated - tolerance
    if packets.damage and not (seconds and reached):
        return f"is damaged or truncated at {seconds:.2f} s ({packets.damage})"
    if packets.resumes:
        return (
            f"is damaged at {seconds:.2f} s, where it should end, and sound follows ({packets.damage}); where files "
            "were joined, join their sound instead (ffmpeg's concat filter)"
        )
    if not seconds:
        raise MediaError("has an audio track without a single sample")
    if sound.gap and (broken := hole(path, kind, packets.end)):
        return f"is damaged at {sound.gap[0]:.2f} s, where {sound.gap[1]:.2f} s of sound are missing ({broken})"
    if not sound.ended:
        return ""
    if (second := second_file(path, kind, packets.end)) is not None:
        return (
            f"is two files in one: {seconds:.2f} s could be decoded, and another file begins at byte {second}; cut "
            "them apart, or join their sound (ffmpeg's concat filter)"
        )
    last = b"" if packets.last is None else bytes(packets.last)
    if kind == "flac" and not reached and not is_whole_flac_frame(last):
        stated_too = "" if stated is None else f" of the {stated:.2f} s it states"
        return f"is truncated: {seconds:.2f} s could be decoded{stated_too}, and its last frame is broken"
    if kind != "flac" and stated is not None and not reached:
        return f"is truncated: {seconds:.2f} s could be decoded of the {stated:.2f} s it states"
    if is_cut_off(path, kind):
        return f"is truncated: it ends after {seconds:.2f} s in the middle of its data"
    return ""


def _whole_length(sound: _Sound, stated: float | None, path: Path, kind: str, *, alone: bool) -> float:
    """Return the length of a medium of which only the start was decoded; NaN where it cannot be known.

    A header's word is taken, unless the bytes decoded so far say that it is of another file: a cut made without
    decoding, or joined files.
    """
    size = path.stat().st_size
    first, last = sound.packets.first, sound.packets.end
    if stated is not None and stated >= sound.seconds - TOLERANCE_SECONDS:
        if not alone or first is None or last is None or last <= first:
            return max(sound.seconds, stated)
        by_bytes = sound.seconds * (size - first) / (last - first)
        if by_bytes / _DOUBTED <= stated <= by_bytes * _DOUBTED:
            return max(sound.seconds, stated)
    measured = sound.packets.measure(sound.clock, sound.seconds, size)
    return math.nan if second_file(path, kind, sound.packets.end) else measured


def _first_bad(sound: _Sound) -> float:
    return int(np.argmin(np.isfinite(sound.mono))) / sound.rate
