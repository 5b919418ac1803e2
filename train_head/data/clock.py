"""The reference clock: when a label row is, or a row of one stream, and which row of each stream holds then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from train_head.data.labels import Labels
from train_head.data.matching import are_few, some_clips
from train_head.data.streams import Rows, Stream, refuse_timeless, rows_at
from train_head.errors import LabelError


@dataclass(frozen=True)
class LabelClock:
    """When label rows are.

    Attributes:
        fps: label rows per second; 0 where the rows are the frames of a video.
        native: the streams that were extracted from every frame of the video: their rows have times.
    """

    fps: float
    native: Sequence[Stream]

    def seconds(self, labels: Labels, clip: int) -> NDArray[np.float64]:
        """(label rows,) seconds of the label rows of one clip; NaN where nothing says when they are.

        Label rows beyond the video's last frame are when that is. Of a video in which nothing was found, only the
        length is known: its label rows are spread evenly over it.
        """
        numbers = labels.moments_of(clip)
        if labels.clock == "time":
            return numbers
        if self.fps:
            return numbers / self.fps
        stream = next((stream for stream in self.native if stream.lengths[clip]), None)
        if stream is None:
            return np.full(len(numbers), np.nan)
        times = _times(stream, clip)
        if self._nothing_found(stream, clip):
            return numbers * (times[0, 1] / max(1, _frames(labels, clip)))
        held: NDArray[np.float64] = times[np.minimum(numbers.astype(np.int64), len(times) - 1), 0]
        return held

    def differing(self, labels: Labels) -> list[str]:
        """Describe the clips whose label rows are a few more or less than the frames of their video.

        Raises:
            LabelError: they are many more or less; names the first five clips with both numbers.
        """
        if labels.clock == "time" or self.fps:
            return []
        few: list[str] = []
        many: list[str] = []
        for clip, name in enumerate(labels.filenames):
            stream = next((stream for stream in self.native if stream.lengths[clip]), None)
            if stream is None or self._nothing_found(stream, clip):
                continue
            rows, frames = _frames(labels, clip), int(stream.lengths[clip])
            if rows > frames or (rows < frames and not labels.clock):  # a table may leave frames out
                said = f"{name}: {rows} rows of labels, {frames} frames"
                (few if are_few(abs(rows - frames), rows) else many).append(said)
        if many:
            raise LabelError(
                f"{labels.path} does not have a row for each frame of the videos of {some_clips(many)}; extract with "
                "--fps native --max-seconds none from the videos that were annotated, or give --label-fps"
            )
        return few

    @staticmethod
    def _nothing_found(stream: Stream, clip: int) -> bool:
        start = int(stream.starts[clip])
        return int(stream.lengths[clip]) == 1 and stream.valid is not None and not stream.valid[start]


def label_clock(labels: Labels, streams: Mapping[str, Stream], fps: float) -> LabelClock:
    """Find what says when label rows are: their file, a rate, or the frames of the videos.

    Args:
        labels: per frame.
        streams: of the same clips; those of which nothing was found with their one row.
        fps: label rows per second; 0 where it is not given.

    Raises:
        LabelError: nothing says it.
    """
    native = [stream for stream in streams.values() if stream.times is not None]
    if labels.clock != "time" and not fps and not native:
        raise LabelError(
            f"{labels.path} does not say when its rows are; give --label-fps, such as 25 for a row every 40 ms"
        )
    return LabelClock(fps, native)


def rows_at_labels(
    labels: Labels, streams: Mapping[str, Stream], fps: float, clock: LabelClock | None = None
) -> dict[str, Tensor]:
    """Find the rows that hold at the label rows.

    Args:
        labels: per frame.
        streams: of the same clips.
        fps: label rows per second; 0 where it is not given.
        clock: when the label rows are; by default what `label_clock` finds.

    Returns:
        By stream, (label rows,) int64, from 0 at a clip's first row; -1 where no row holds.

    Raises:
        LabelError: nothing says when the label rows are.
    """
    clock = clock or label_clock(labels, streams, fps)
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in streams}
    for clip in range(len(labels)):
        seconds = clock.seconds(labels, clip)
        for name, stream in streams.items():
            found[name].append(stream.rows_at(clip, seconds))
    empty = np.empty(0, np.int64)
    return {name: torch.from_numpy(np.concatenate([empty, *parts])) for name, parts in found.items()}


def rows_at_clock(streams: Mapping[str, Rows], clock: str) -> dict[str, Rows]:
    """Take the rows of one stream as reference rows of a batch; of a clip that lacks it, those of the first it has.

    Args:
        streams: of the same clips.
        clock: the stream whose rows are the reference rows.

    Returns:
        The streams with `at`; -1 where no row holds, and behind a clip's last reference row.

    Raises:
        TrainSettingsError: nothing says when the rows of a stream are.
    """
    for name, rows in streams.items():
        refuse_timeless(name, rows.hop, rows.times)
    seconds = streams[clock].seconds
    for rows in streams.values():
        lacking = seconds.isnan().all(dim=1)
        if lacking.any():
            own = rows.seconds
            count = max(own.shape[1], seconds.shape[1])
            own, seconds = (functional.pad(x, (0, count - x.shape[1]), value=torch.nan) for x in (own, seconds))
            seconds = torch.where(lacking[:, None], own, seconds)
    return {
        name: replace(rows, at=rows_at(seconds, rows.lengths, rows.hop, rows.times)) for name, rows in streams.items()
    }


def _frames(labels: Labels, clip: int) -> int:
    """Return the number of frames up to a clip's last label row."""
    numbers = labels.moments_of(clip)
    return int(numbers[-1]) + 1 if len(numbers) else 0


def _times(stream: Stream, clip: int) -> NDArray[np.float64]:
    """(rows, 2) start and end of the rows of a clip."""
    assert stream.times is not None
    start = int(stream.starts[clip])
    return stream.times[start : start + int(stream.lengths[clip])].double().numpy()
