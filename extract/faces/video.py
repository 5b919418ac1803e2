"""Read the pictures of a video by the time at which each is shown, on the clock of its sound.

Time 0 is that of the sound (`extract.audio.track`): a picture at 3.0 s belongs to what is heard at 3.0 s, so a track of
pictures that starts late keeps its late start. A picture is shown until the next one. Times are those of the decoded
frames, in presentation order and with edit lists applied by FFmpeg; frame numbers and stated frame rates are not used,
since half of the files state nonsense. Where a container states no presentation times (AVI, raw streams), the n-th
picture is shown at the n-th smallest decoding time, and where there are none of either kind, when the one before ends.
"""

import heapq
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from extract.audio.media import check_file, open_container
from extract.audio.structure import TOLERANCE_SECONDS as STATED_TOLERANCE
from extract.audio.structure import stated_seconds
from extract.audio.track import TOLERANCE_SECONDS, Clock, clock_zero, why
from extract.errors import MediaError
from extract.faces.upright import Image, Upright
from extract.settings import DEFAULT, DecodeOptions

MAX_SIDE = 1280
"""Pixels. In a 4K picture reduced to this, a face of 120 pixels still has 40, the smallest that is searched."""
BLOCK_BYTES = 64 << 20
BLOCK_ROWS = 64
# Formats that state how long each picture is shown; in others that follows from the stated rate.
_STATE_DURATIONS = frozenset({"apng", "gif", "mov,mp4,m4a,3gp,3g2,mj2"})
# How long the last picture is shown where neither it nor the one before it tells, in seconds.
_LAST_SHOWN = 0.04
# Milliseconds are the coarsest unit of time in which containers round; half of it decides which picture is due.
_COARSEST_TICK = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Some rows of a video.

    Attributes:
        images: (rows, height, width, 3) uint8 RGB, upright, with square pixels; zeros where nothing is shown.
        times: (rows, 2) float64, start and end in seconds: of a step of 1 / fps, or of a frame.
        shown: (rows,) bool, false before the first picture of a track that starts late.
    """

    images: NDArray[np.uint8]
    times: NDArray[np.float64]
    shown: NDArray[np.bool_]


class Video:
    """The pictures of one video file, decoded while it is iterated over, in blocks of bounded memory.

    Args:
        path: of the file.
        fps: rows per second, each the picture that is shown at its start; None gives every frame ("native").
        max_seconds: where decoding stops; None reads to the end.
        max_side: see `Upright`.
        options: whether a file that is cut off is used; nothing else of them is used here.

    Attributes:
        seconds: length of the pictures before the cut, NaN where it is unknown; set after the last block.
        cut_off: why the file is incomplete, where that is allowed, else ""; set after the last block.
        note: how times were found where the file does not state them, else ""; set after the last block.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float | None,
        max_seconds: float | None = None,
        max_side: int | None = MAX_SIDE,
        options: DecodeOptions = DEFAULT,
    ) -> None:
        self._path, self._fps, self._options = path, fps, options
        self._limit = math.inf if max_seconds is None else max_seconds
        self._max_side = max_side
        self.seconds, self.cut_off, self.note = math.nan, "", ""

    def __iter__(self) -> Iterator[Pictures]:
        """Yield the rows in blocks.

        Raises:
            MediaError: the file has no video track or cannot be decoded, with the reason.
        """
        with self._opened() as container:
            yield from self._blocks(container)

    def frame_times(self) -> tuple[NDArray[np.float64], bool]:
        """Return (frames, 2) start and end of every frame up to the cut, and whether these are all that there are.

        Raises:
            MediaError: as for the pictures.
        """
        with self._opened() as container:
            stream, zero = choose_video(container), clock_zero(container)
            track = FrameTrack(container, stream, zero)
            times = np.array([(frame.start, frame.end) for frame in self._every_frame(track)])
            self._conclude(container, stream, track, zero)
            return times.reshape(-1, 2), not track.stopped

    @contextmanager
    def _opened(self) -> Iterator[av.container.InputContainer]:
        check_file(self._path)
        with ExitStack() as opened:
            container = open_container(self._path, opened)
            try:
                yield container
            except (av.error.FFmpegError, OSError, ValueError) as error:
                if isinstance(error, MediaError):
                    raise
                raise MediaError(f"cannot be decoded ({why(error)})") from error

    def _blocks(self, container: av.container.InputContainer) -> Iterator[Pictures]:
        stream, zero = choose_video(container), clock_zero(container)
        track = FrameTrack(container, stream, zero)
        rows = self._every_frame(track) if self._fps is None else self._sampled(track, self._fps)
        held: list[_Row] = []
        images: list[Image] = []
        upright: Upright | None = None
        for row in rows:
            if upright is None:
                upright = Upright(row.frame, stream.sample_aspect_ratio, self._max_side)
            if held and held[-1].frame is row.frame and held[-1].shown == row.shown:  # is shown for several rows
                images.append(images[-1])
            else:
                images.append(upright(row.frame) if row.shown else upright.nothing)
            held.append(row)
            if len(held) == upright.rows(BLOCK_BYTES, BLOCK_ROWS):
                yield _block(held, images)
                held, images = [], []
        if held:
            yield _block(held, images)
        self._conclude(container, stream, track, zero)

    def _every_frame(self, track: "FrameTrack") -> Iterator["_Row"]:
        for shown in track.shown():
            if shown.start >= self._limit:
                track.stopped = True
                return
            yield shown

    def _sampled(self, track: "FrameTrack", fps: float) -> Iterator["_Row"]:
        rounding = min(track.tick, _COARSEST_TICK) / 2 + 1e-6
        rows, due = math.inf if math.isinf(self._limit) else math.ceil(self._limit * fps - 1e-6), 0
        for frame, start, end, _ in track.shown():
            if due == 0 and start <= TOLERANCE_SECONDS:  # an encoder's delay, which sound is allowed as well
                start = 0.0
            while due < rows and due / fps < start - rounding:
                yield _Row(frame, due / fps, (due + 1) / fps, shown=False)
                due += 1
            while due < rows and (due / fps < end - rounding or (due == 0 and start == 0)):
                yield _Row(frame, due / fps, (due + 1) / fps)
                due += 1
            if due >= rows:
                track.stopped = True
                return

    def _conclude(
        self, container: av.container.InputContainer, stream: av.VideoStream, track: "FrameTrack", zero: float
    ) -> None:
        """Set what is known after the last block, and refuse a file that is incomplete."""
        if not track.count:
            reason = track.damage or track.skipped
            raise MediaError("has a video track without a picture that can be decoded" + f" ({reason})" * bool(reason))
        stated = None if track.clock.broken else stated_seconds(container, stream, self._path, zero)
        self.note = track.note
        if track.stopped:
            length = stated or (container.duration / 1e6 - zero if container.duration else math.nan)
            self.seconds = max(length, track.end)
            return
        self.seconds = track.end
        allowed = STATED_TOLERANCE + track.last_step
        if track.damage:
            self.cut_off = f"is damaged or truncated at {track.end:.2f} s of its pictures ({track.damage})"
        elif stated is not None and max(track.end, track.reached) < stated - allowed:
            self.cut_off = (
                f"is truncated: {track.end:.2f} s of pictures could be decoded of the {stated:.2f} s that it states"
            )
        if self.cut_off and not self._options.allow_truncated:
            raise MediaError(self.cut_off)


def choose_video(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video track: the one marked default, else the first; cover art and thumbnails are none.

    Raises:
        MediaError: there is none.
    """
    stills = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    tracks = [track for track in container.streams.video if not track.disposition & stills]
    if not tracks:
        only = " (its picture is cover art)" if container.streams.video else ""
        raise MediaError(f"has no video track{only}")
    marked = (track for track in tracks if track.disposition & av.stream.Disposition.default)
    return next(marked, tracks[0])


def has_pictures(path: Path) -> bool:
    """Return whether a file has a video track; false for one that cannot be opened. Nothing is decoded."""
    try:
        with ExitStack() as opened:
            choose_video(open_container(path, opened))
    except (av.error.FFmpegError, OSError, MediaError):
        return False
    return True


class _Row(NamedTuple):
    """A frame from a time to a time in seconds; while it is not shown yet, it only tells the size."""

    frame: av.VideoFrame
    start: float
    end: float
    shown: bool = True


class FrameTrack:
    """The decoded frames of a video track with the time from which each is shown.

    Args:
        container: opened for reading.
        stream: the track.
        zero: time 0 on the container's clock, in seconds.

    Attributes:
        clock: of the container.
        tick: unit of its timestamps, in seconds.
        count: frames decoded so far.
        end: time at which the last frame decoded so far ends.
        last_step: seconds for which it is shown.
        reached: time at which the last of the packets read so far ends.
        damage: why decoding stopped early, or "".
        skipped: why a packet before the first picture could not be decoded, or "".
        stopped: whether the reader stopped before the end.
        note: how times were found where the file does not state them, else "".
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, zero: float) -> None:
        self._packets = container.demux(stream)
        self._decoding_times_only = container.format.name == "avi"
        self._durations = container.format.name in _STATE_DURATIONS
        self._waiting: list[int] = []
        self.clock, self.tick = Clock(zero), float(stream.time_base or 0)
        self.count = 0
        self.end, self.last_step, self.reached = 0.0, 0.0, 0.0
        self.damage, self.skipped, self.stopped, self.note = "", "", False, ""

    def shown(self) -> Iterator[_Row]:
        """Yield each frame with the times from and until which it is shown."""
        before: av.VideoFrame | None = None
        start = 0.0
        for frame in self._frames():
            self.count += 1
            time = self._time(frame)
            if before is None:
                start = time
            else:
                time = max(time, start)
                yield _Row(before, start, time)
                self.last_step, start = time - start, time
            before = frame
            own = frame.duration * self.tick
            self.end = start + ((self._durations and own) or self.last_step or own or _LAST_SHOWN)
        if before is not None:
            self.last_step = self.end - start
            yield _Row(before, start, self.end)

    def _time(self, frame: av.VideoFrame) -> float:
        """Return when a frame is shown, on the clock of the sound."""
        stamp = frame.pts
        if stamp is None or self._decoding_times_only:
            stamp = heapq.heappop(self._waiting) if self._waiting else None
        if stamp is None:
            self.note = "times of pictures are sums of their durations, since the file states none"
            return self.end
        self.clock.silence_before(stamp * self.tick, self.end)  # follows a clock that jumps or starts again
        return self.clock.at(stamp * self.tick)

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Yield the decoded frames in the order in which they are shown, up to the end or to damage."""
        try:
            for packet in self._packets:
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    if not self.count:  # a recording that starts between two key frames
                        self.skipped = why(error)
                        continue
                    self.damage = why(error)
                    return
                if packet.pts is not None:
                    self.reached = max(self.reached, self.clock.at((packet.pts + (packet.duration or 0)) * self.tick))
                if packet.size and packet.dts is not None and (packet.pts is None or self._decoding_times_only):
                    heapq.heappush(self._waiting, packet.dts)
                yield from frames
        except av.error.FFmpegError as error:  # of the demuxer
            self.damage = why(error)


def _block(rows: list[_Row], images: list[Image]) -> Pictures:
    times = np.array([(row.start, row.end) for row in rows])
    return Pictures(np.stack(images), times, np.array([row.shown for row in rows]))
