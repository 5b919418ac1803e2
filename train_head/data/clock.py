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
        streams: of the clips; rows of those that were extracted from every frame of the video have times.
    """

    fps: float
    streams: Sequence[Stream]

    def seconds(self, labels: Labels, clip: int) -> NDArray[np.float64]:
        """(label rows,) seconds of the label rows of one clip; NaN where nothing says when they are.

        Label rows beyond the video's last frame are when that is. Where no stream has the frames of the video, as where
        no face was found, label rows are spread evenly over the clip.
        """
        numbers = labels.moments_of(clip)
        if labels.clock == "time":
            return numbers
        if self.fps:
            return numbers / self.fps
        video = self._video(clip)
        if video is None:
            length = max(_end(stream, clip) for stream in self.streams)
            return numbers * (length / max(1, _frames(labels, clip))) if length else np.full(len(numbers), np.nan)
        times = _times(video, clip)
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
            video = self._video(clip)
            rows, frames = _frames(labels, clip), int(video.lengths[clip]) if video is not None else 0
            if frames and (rows > frames or (rows < frames and not labels.clock)):  # a table may leave frames out
                said = f"{name}: {rows} rows of labels, {frames} frames"
                (few if are_few(abs(rows - frames), rows) else many).append(said)
        if many:
            raise LabelError(
                f"{labels.path} does not have a row for each frame of the videos of {some_clips(many)}; extract with "
                "--fps native --max-seconds none from the videos that were annotated, or give --label-fps"
            )
        return few

    def _video(self, clip: int) -> Stream | None:
        """Return the first stream with a row for each frame of a clip's video; one row without anything is none."""
        for stream in self.streams:
            length, start = int(stream.lengths[clip]), int(stream.starts[clip])
            nothing = length == 1 and stream.valid is not None and not stream.valid[start]
            if stream.times is not None and length and not nothing:
                return stream
        return None


def label_clock(labels: Labels, streams: Mapping[str, Stream], fps: float) -> LabelClock:
    """Find what says when label rows are: their file, a rate, or the frames of the videos.

    Args:
        labels: per frame.
        streams: of the same clips; those of which nothing was found with their one row.
        fps: label rows per second; 0 where it is not given.

    Raises:
        LabelError: nothing says it.
    """
    if labels.clock != "time" and not fps and all(stream.times is None for stream in streams.values()):
        raise LabelError(
            f"{labels.path} does not say when its rows are; give --label-fps, such as 25 for a row every 40 ms"
        )
    return LabelClock(fps, list(streams.values()))


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


def _end(stream: Stream, clip: int) -> float:
    """Seconds at which the last row of a clip ends; 0 where there is none, or nothing says it."""
    if stream.times is not None:
        return float(_times(stream, clip)[-1:, 1].sum())
    return int(stream.lengths[clip]) * (stream.hop or 0.0)
