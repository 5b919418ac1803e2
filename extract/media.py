"""Decode the audio of any media file to a 16 kHz mono waveform with PyAV, which carries its own FFmpeg.

Reading imports no torch, so that decoding processes start at once; resampling does.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from extract.errors import MediaError
from extract.settings import SAMPLE_RATE
from extract.truncation import EXACT_KINDS, TOLERANCE_SECONDS, is_cut_off, stated_seconds

if TYPE_CHECKING:
    import torchaudio

_MARGIN_SECONDS = 0.1
"""Decoded beyond the cut, so that the resampler's filter sees at the cut what it would see in the whole file."""
_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 2.0**63}
_PLAYLISTS = frozenset({"concat", "dash", "hls", "imf", "sdp"})
"""Demuxers that read other files than the one named; FFmpeg chooses by content, whatever the suffix."""
_OPTIONS = {"protocol_whitelist": "file"}
_WAV_OPTIONS = {"max_probe_packets": "8"}
"""FFmpeg looks through a whole WAV file for DTS in disguise, which takes longer than decoding it; 32 KiB will do."""
_KERNEL_LIMIT = 1 << 24
"""Coefficients of torchaudio's resampling kernel above which its memory (4 bytes each, several copies) explodes."""


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """Decoded audio.

    Attributes:
        samples: (samples,) float32 at 16 kHz, mono, cut to the maximum length, not normalised.
        seconds: length of the medium before the cut; beyond the cut it is what the file states.
    """

    samples: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Decoded audio at the file's own rate.

    Attributes:
        samples: (samples,) float32 mono, a little longer than the cut.
        rate: Hz.
        seconds: see `Waveform`.
    """

    samples: NDArray[np.float32]
    rate: int
    seconds: float

    def waveform(self, max_seconds: float) -> Waveform:
        """Resample and cut."""
        return Waveform(resample(self.samples, self.rate)[: round(max_seconds * SAMPLE_RATE)], self.seconds)


def decode(path: Path, max_seconds: float = 12.0) -> Waveform:
    """Read the first `max_seconds` of a file's audio track and resample it once.

    Raises:
        MediaError: see `read`.
    """
    return read(path, max_seconds).waveform(max_seconds)


def read(path: Path, max_seconds: float) -> Recording:
    """Read the first `max_seconds` of a file's audio track; decoding stops there.

    Channels are averaged in float32 (swresample's own downmix is 3 dB louder).

    Raises:
        MediaError: the file cannot be read, with the reason.
    """
    _check_file(path)
    options = _OPTIONS | (_WAV_OPTIONS if path.suffix.lower() == ".wav" else {})
    try:
        container = av.open(f"file:{path}", metadata_errors="ignore", options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"is not a media file that FFmpeg can read ({_why(error)})") from error
    with container:
        if container.format.name in _PLAYLISTS:
            raise MediaError("is a playlist that points to other files, not a media file")
        if not container.streams.audio:
            raise MediaError("has no audio track")
        stream = container.streams.audio[0]
        try:
            stated = stated_seconds(container, stream, path)
            mono, rate, ended, damage = _read_mono(container, stream, max_seconds + _MARGIN_SECONDS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"cannot be decoded ({_why(error)})") from error
        kind, container_seconds = container.format.name, (container.duration or 0) / 1e6
    seconds = len(mono) / rate if rate else 0.0
    _check_complete(path, kind, seconds, stated, ended, damage)
    if not np.isfinite(mono).all():
        raise MediaError(
            f"has samples that are not finite (NaN or infinity), the first at {_first_bad(mono) / rate:.3f} s"
        )
    if not ended:
        seconds = max(seconds, container_seconds if stated is None else stated)
    return Recording(mono, rate, seconds)


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


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise MediaError("is a folder, not a media file")
        if not path.exists():
            raise MediaError("does not exist")
        if path.stat().st_size == 0:
            raise MediaError("is empty (0 bytes)")
    except OSError as error:  # a folder without permission, a name that is too long, a broken disk
        raise MediaError(f"cannot be read ({_why(error)})") from error


def _read_mono(
    container: av.container.InputContainer, stream: av.AudioStream, max_seconds: float
) -> tuple[NDArray[np.float32], int, bool, str]:
    """Decode up to `max_seconds`: (samples,) at the file's rate, the rate, whether it ended, and what broke it off."""
    pieces: list[tuple[tuple[str, int], NDArray[Any]]] = []
    rate, count, damage, ended = 0, 0, "", True
    try:
        for frame in _frames(container, stream):
            if rate and frame.sample_rate != rate:
                raise MediaError(f"changes its sample rate from {rate} to {frame.sample_rate} Hz; re-encode it")
            rate = frame.sample_rate
            pieces.append(((frame.format.name, frame.layout.nb_channels), frame.to_ndarray()))
            count += frame.samples
            if count >= max_seconds * rate:
                ended = False
                break
    except av.error.FFmpegError as error:
        damage = _why(error)
    alike = itertools.groupby(pieces, key=lambda piece: piece[0])  # one group, unless the stream changes its layout
    mono = [_mono(np.concatenate([array for _, array in group], axis=1), *layout) for layout, group in alike]
    return (np.concatenate(mono) if mono else np.zeros(0, np.float32)), rate, ended, damage


def _frames(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    yield from container.decode(stream)


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


def _check_complete(path: Path, kind: str, seconds: float, stated: float | None, ended: bool, damage: str) -> None:
    """Refuse what is empty, broken off or cut off; damage after the stated end is trailing rubbish and harmless."""
    tolerance = 0.0005 if kind in EXACT_KINDS else TOLERANCE_SECONDS
    reached = stated is not None and seconds >= stated - tolerance
    if damage and not (seconds and reached):
        raise MediaError(f"is damaged or truncated at {seconds:.2f} s ({damage})")
    if not seconds:
        raise MediaError("has an audio track without a single sample")
    if ended and stated is not None and not reached:
        raise MediaError(f"is truncated: {seconds:.2f} s could be decoded of the {stated:.2f} s it states")
    if ended and is_cut_off(path, kind):
        raise MediaError(f"is truncated: it ends after {seconds:.2f} s in the middle of its data")


def _first_bad(mono: NDArray[np.float32]) -> int:
    return int(np.argmin(np.isfinite(mono)))


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
