"""Place decoded sound on the clock of its container: silence fills late starts and gaps.

Time 0 is where a player starts. In containers with an absolute clock (`_OWN_ZERO`: Matroska, MP4, FLV, Ogg, …) that is
timestamp 0. In three cases it is the start of the earliest track instead: nothing is seen or heard for `LATEST_START`
seconds (the file was cut from a longer one and kept its clock); the clock starts anywhere (MPEG transport and program
streams); all tracks are late by an encoder's delay (`ENCODER_DELAY`). Raw streams (MP3, ADTS, FLAC, …) have no clock
beside their samples.
"""

import av
import av.container
import av.stream

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
