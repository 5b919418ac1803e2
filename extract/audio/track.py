"""Decode an audio track packet by packet onto the clock of its container, and record where it starts, ends and breaks.

Silence fills late starts and gaps. Time 0 is where a player starts. In containers with an absolute clock (`_OWN_ZERO`:
Matroska, MP4, FLV, Ogg, …) that is timestamp 0. In three cases it is the start of the earliest track instead: nothing
is seen or heard for `LATEST_START` seconds (the file was cut from a longer one and kept its clock); the clock starts
anywhere (MPEG transport and program streams); all tracks are late by an encoder's delay (`ENCODER_DELAY`). Raw streams
(MP3, ADTS, FLAC, …) have no clock beside their samples.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.errors import MediaError

TOLERANCE_SECONDS = 0.1
"""Sound and timestamp may differ by this much: codec delay, rounding to milliseconds, jitter of recorders."""
ENCODER_DELAY = 0.3
"""Seconds by which muxers may delay all tracks, so that no frame has a negative timestamp."""
LATEST_START = 10.0
"""Seconds before the earliest track; where a file states more, it was cut from a longer one."""
LARGEST_GAP = 600.0
"""Seconds. A clock that jumps further is broken: the jump is ignored."""
LARGEST_OVERLAP = 1.0
"""Seconds. A clock that is further behind the sound has started again (joined files): the sound continues."""
_OWN_ZERO = frozenset({"asf", "avi", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "nut", "ogg"})
MEASURED_BYTES = 64 << 20
"""Where no header states the length, up to this many more bytes are read to measure it."""
# Starts of packets that are no sound: tags between joined MP3s.
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
# Sound behind damage that is longer than random bytes could give.
_RESUMED_SECONDS = 0.5
_FULL_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 2.0**63}
# Sample format and channels of the silence in gaps.
_SILENCE = ("fltp", 1)


def choose_track(container: av.container.InputContainer, number: int | None) -> tuple[av.AudioStream, str]:
    """Return the audio track to decode, and where there are several a note which one it is, else "".

    Args:
        container: opened for reading.
        number: of the track among the audio tracks, from 1; None takes the one marked default, else the first.

    Raises:
        MediaError: there is no audio track, or no track of that number.
    """
    tracks = container.streams.audio
    if not tracks:
        raise MediaError("has no audio track")
    if number is not None and number > len(tracks):
        plural = "s" * (len(tracks) > 1)
        raise MediaError(
            f"has {len(tracks)} audio track{plural}, and --track {number} was asked for; give 1 to {len(tracks)}, or "
            "leave it out"
        )
    marked = [i for i, track in enumerate(tracks, 1) if track.disposition & av.stream.Disposition.default]
    chosen = number or next(iter(marked), 1)
    why = "asked for" if number else "marked default" if marked else "the first"
    note = f"audio track {chosen} of {len(tracks)} ({why})" if len(tracks) > 1 else ""
    return tracks[chosen - 1], note


class Clock:
    """Computes the silence before each piece of sound.

    Args:
        zero: time 0 on the container's clock, in seconds.

    Attributes:
        broken: whether it jumped by more than `LARGEST_GAP`; no stated time is valid then.
    """

    def __init__(self, zero: float) -> None:
        self._offset = -zero
        self.broken = False

    def at(self, start: float) -> float:
        """Return the time of a timestamp."""
        return start + self._offset

    def silence_before(self, start: float, end: float) -> float:
        """Return the seconds of silence between `end` seconds of sound and sound with the timestamp `start`.

        0 where the two differ by at most `TOLERANCE_SECONDS`.
        """
        late = self.at(start) - end
        if -LARGEST_OVERLAP <= late <= LARGEST_GAP:
            return late if late > TOLERANCE_SECONDS else 0.0
        self._offset -= late
        self.broken = self.broken or late > 0
        return 0.0


def clock_zero(container: av.container.InputContainer) -> float:
    """Return time 0 on the container's clock, in seconds; see this module."""
    starts = [
        float(stream.start_time * stream.time_base)
        for stream in container.streams
        if stream.type in ("audio", "video")
        and stream.start_time is not None
        and stream.time_base
        and not stream.disposition & av.stream.Disposition.attached_pic
    ]
    earliest = min(starts, default=0.0)
    return 0.0 if container.format.name in _OWN_ZERO and ENCODER_DELAY < earliest <= LATEST_START else earliest


class Track:
    """An audio track, decoded once, with silence in the gaps of the container's clock.

    Args:
        container: opened for reading.
        stream: the track.
        zero: time 0 on the container's clock, in seconds.

    Attributes:
        clock: of the container.
        first: byte position of the first packet, or None where the demuxer does not state it.
        last: the last packet with content.
        damage: why decoding stopped early, or "".
        resumes: whether sound follows the damage.
        rate: Hz.
        gap: (start, length) of the first gap in seconds, or None.
        ended: whether the track ended before the limit.
        count: samples decoded so far, at `rate`.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream, zero: float) -> None:
        self._packets, self._tick = container.demux(stream), float(stream.time_base or 0)
        self.clock = Clock(zero)
        self.first: int | None = None
        self.last: av.Packet[Any] | None = None
        self.damage, self.resumes = "", False
        self.rate, self.count, self.ended = 0, 0, True
        self.gap: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Length of what was decoded so far."""
        return self.count / self.rate if self.rate else 0.0

    def mono(self, max_seconds: float) -> NDArray[np.float32]:
        """Decode up to a limit: (samples,) at `rate`, the last frame whole."""
        return _joined(list(self._pieces(max_seconds)))

    def blocks(self, seconds: float) -> Iterator[NDArray[np.float32]]:
        """Decode the whole track in blocks of at least `seconds`, but for the last."""
        held: list[_Piece] = []
        start = 0
        for piece in self._pieces(math.inf):
            held.append(piece)
            if self.count - start >= seconds * self.rate:
                yield _joined(held)
                held, start = [], self.count
        if held:
            yield _joined(held)

    def frames(self) -> Iterator[av.AudioFrame]:
        """Yield the decoded frames up to the end, or up to damage."""
        try:
            for packet in self._packets:
                if packet.size:
                    self.first, self.last = (packet.pos if self.last is None else self.first), packet
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    if bytes(packet).startswith(_TAGS):
                        continue
                    self.damage = why(error)
                    self.resumes = self._sound_follows()
                    return
                yield from frames
        except av.error.FFmpegError as error:  # of the demuxer
            self.damage = self.damage or why(error)

    @property
    def end(self) -> int | None:
        """Byte position behind the last packet, or None where it is unknown."""
        return None if self.last is None or self.last.pos is None else self.last.pos + self.last.size

    def measure(self, size: int) -> float:
        """Return the length of the track in seconds by reading its other packets without decoding them.

        Args:
            size: of the file in bytes.

        Returns:
            NaN where more than `MEASURED_BYTES` are left, or the packets state no duration.
        """
        end = self.seconds
        if size - (self.end or 0) > MEASURED_BYTES:
            return math.nan
        try:
            for packet in self._packets:
                if not packet.size:
                    continue
                self.last = packet
                if packet.pts is not None:
                    end += self.clock.silence_before(packet.pts * self._tick, end)
                    start = self.clock.at(packet.pts * self._tick)
                    end = start if abs(start - end) <= TOLERANCE_SECONDS else end  # durations are rounded in some
                if not packet.duration:
                    return math.nan
                end += packet.duration * self._tick
        except av.error.FFmpegError:
            return math.nan
        return end

    def _sound_follows(self) -> bool:
        seconds = 0.0
        for packet in itertools.islice(self._packets, 1000):
            try:
                seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
            except av.error.FFmpegError:
                continue
            if seconds >= _RESUMED_SECONDS:
                return True
        return False

    def _pieces(self, max_seconds: float) -> "Iterator[_Piece]":
        """Yield the frames up to a limit, and silence."""
        limit = 0.0
        for frame in self.frames():
            if frame.sample_rate != self.rate:
                if self.rate:
                    raise MediaError(
                        f"changes its sample rate from {self.rate} to {frame.sample_rate} Hz; re-encode it"
                    )
                self.rate = frame.sample_rate
                limit = max_seconds if math.isinf(max_seconds) else math.ceil(max_seconds * self.rate)
            at = self.count / self.rate
            if frame.pts is not None and (gap := self.clock.silence_before(frame.pts * self._tick, at)):
                silent = int(min(round(gap * self.rate), limit - self.count))
                self.gap = self.gap or (at, gap)
                self.count += silent
                yield _SILENCE, np.zeros((1, silent), np.float32)
            if self.count < limit:
                self.count += frame.samples
                yield (frame.format.name, frame.layout.nb_channels), frame.to_ndarray()
            if self.count >= limit:
                self.ended = False
                return


_Piece = tuple[tuple[str, int], NDArray[Any]]
"""Sample format and channels, and samples in that format."""


def _joined(pieces: "Sequence[_Piece]") -> NDArray[np.float32]:
    """Return the (samples,) of pieces; they have one layout, unless it changes or there is a gap."""
    groups = itertools.groupby(pieces, key=lambda piece: piece[0])
    mono = [_mono(np.concatenate([array for _, array in group], axis=1), *layout) for layout, group in groups]
    return np.concatenate(mono) if mono else np.zeros(0, np.float32)


def _mono(array: NDArray[Any], sample_format: str, channels: int) -> NDArray[np.float32]:
    """Average planar (channels, samples) or packed (1, all) over channels: (samples,) float32 in [-1, 1]."""
    if not sample_format.endswith("p"):
        array = array.reshape(-1, channels).T
    kind = sample_format.removesuffix("p")
    values = array.astype(np.float32)
    if kind == "u8":
        values -= 128.0
    values /= np.float32(_FULL_SCALE.get(kind, 1.0))
    return values[0] if len(values) == 1 else values.mean(axis=0, dtype=np.float32)


def why(error: Exception) -> str:
    """Return the reason for an error of FFmpeg or of the operating system."""
    return str(getattr(error, "strerror", None) or error)
