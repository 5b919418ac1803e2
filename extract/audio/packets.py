"""Demux and decode one audio track packet by packet, and record where it starts, ends and breaks."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import av
import av.container

from extract.audio.timeline import TOLERANCE_SECONDS, Clock

MEASURED_BYTES = 64 << 20
"""Where no header states the length, up to this many more bytes are read to measure it."""
# Starts of packets that are no sound: tags between joined MP3s.
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
# Sound behind damage that is longer than random bytes could give.
_RESUMED_SECONDS = 0.5


class Packets:
    """The packets of one audio track.

    Args:
        container: opened for reading.
        stream: the track.

    Attributes:
        first: byte position of the first packet, or None where the demuxer does not state it.
        last: the last packet with content.
        damage: why decoding stopped early, or "".
        resumes: whether sound follows the damage.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream) -> None:
        self._stream = stream
        self._packets = container.demux(stream)
        self.first: int | None = None
        self.last: av.Packet[Any] | None = None
        self.damage = ""
        self.resumes = False

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

    def measure(self, clock: Clock, end: float, size: int) -> float:
        """Return the length of the track in seconds by reading its other packets without decoding them.

        Args:
            clock: of the sound decoded so far.
            end: seconds decoded so far.
            size: of the file in bytes.

        Returns:
            NaN where more than `MEASURED_BYTES` are left, or the packets state no duration.
        """
        if size - (self.end or 0) > MEASURED_BYTES:
            return math.nan
        tick = float(self._stream.time_base or 0)
        try:
            for packet in self._packets:
                if not packet.size:
                    continue
                self.last = packet
                if packet.pts is not None:
                    end += clock.silence_before(packet.pts * tick, end)
                    start = clock.at(packet.pts * tick)
                    end = start if abs(start - end) <= TOLERANCE_SECONDS else end  # durations are rounded in some
                if not packet.duration:
                    return math.nan
                end += packet.duration * tick
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


def why(error: Exception) -> str:
    """Return the reason for an error of FFmpeg or of the operating system."""
    return str(getattr(error, "strerror", None) or error)
