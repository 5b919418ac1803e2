"""Place decoded sound on the clock of its container: silence fills late starts and gaps.

Zero is where a player starts. In containers with a clock of their own (`_OWN_ZERO`: Matroska, MP4, FLV, Ogg, …) that
is timestamp 0, unless nothing is seen or heard for `LATEST_START` seconds: then the file was cut from a longer one and
kept its clock. Such a clock, one that starts anywhere (MPEG transport and program streams), and one on which all tracks
are late by an encoder's delay (`ENCODER_DELAY`), is at zero where the earliest track starts. Raw streams (MP3, ADTS,
FLAC, …) have no clock beside their samples.
"""

import av
import av.container
import av.stream

TOLERANCE_SECONDS = 0.1
"""Sound may be this much later than its timestamp says: codec delay, rounding to milliseconds, jitter of recorders."""
ENCODER_DELAY = 0.3
"""Seconds by which muxers move all tracks to later times, so that frames decoded early have none below zero."""
LATEST_START = 10.0
"""Seconds before the earliest track from which a container's clock is taken to have started elsewhere."""
LARGEST_GAP = 600.0
"""Seconds; a clock that jumps further is broken, and the sound continues where it was."""
LARGEST_OVERLAP = 1.0
"""Seconds; a clock that falls further behind the sound has started again (joined files), and is followed from there."""
_OWN_ZERO = frozenset({"asf", "avi", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "nut", "ogg"})


class Clock:
    """Says how much silence comes before each piece of sound.

    Args:
        zero: seconds on the container's clock at which the sound's own time starts.

    Attributes:
        broken: whether it jumped by more than `LARGEST_GAP`, so that no time it states means anything.
    """

    def __init__(self, zero: float) -> None:
        self._offset = -zero
        self.broken = False

    def at(self, start: float) -> float:
        """Return the time of a timestamp from zero on."""
        return start + self._offset

    def silence_before(self, start: float, end: float) -> float:
        """Return the seconds of silence before sound with the timestamp `start`, where `end` seconds are there already.

        0 where the two agree to `TOLERANCE_SECONDS`.
        """
        late = self.at(start) - end
        if -LARGEST_OVERLAP <= late <= TOLERANCE_SECONDS:
            return 0.0
        if 0 < late <= LARGEST_GAP:
            return late
        self._offset -= late
        self.broken = self.broken or late > 0
        return 0.0


def clock_zero(container: av.container.InputContainer) -> float:
    """Return the time on the container's clock, in seconds, that is the start of every track; see this module."""
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
