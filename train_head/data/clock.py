"""The reference clock of labels per frame: when a label row is, and which row of each stream holds then."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_head.data.labels import Labels
from train_head.data.streams import Stream
from train_head.errors import LabelError


def rows_at_labels(labels: Labels, streams: Mapping[str, Stream], fps: float) -> dict[str, Tensor]:
    """Find the rows that hold at the label rows.

    A label row is at the time that its file gives. Where it gives none, row i is at i / `fps` or, without `fps`, at the
    time of row i of the stream that was extracted from every frame of the video (its rows have times).

    Args:
        labels: per frame.
        streams: of the same clips.
        fps: label rows per second; 0 where it is not given.

    Returns:
        By stream, (label rows,) int64, from 0 at a clip's first row; -1 where no row holds.

    Raises:
        LabelError: nothing says when the label rows are.
    """
    native = next((stream for stream in streams.values() if stream.times is not None), None)
    if labels.clock != "time" and not fps and native is None:
        raise LabelError(
            f"{labels.path} does not say when its rows are; give --label-fps, such as 25 for a row every 40 ms"
        )
    assert labels.offsets is not None
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in streams}
    for clip in range(len(labels)):
        rows = slice(int(labels.offsets[clip]), int(labels.offsets[clip + 1]))
        seconds = _seconds(labels, rows, clip, fps, native)
        for name, stream in streams.items():
            found[name].append(stream.rows_at(clip, seconds))
    empty = np.empty(0, np.int64)
    return {name: torch.from_numpy(np.concatenate([empty, *parts])) for name, parts in found.items()}


def _seconds(labels: Labels, rows: slice, clip: int, fps: float, native: Stream | None) -> NDArray[np.float64]:
    """(rows,) seconds of the label rows of one clip; NaN of a frame beyond the video's last."""
    if labels.clock == "time":
        assert labels.moments is not None
        return labels.moments[rows]
    numbers = np.arange(rows.stop - rows.start, dtype=np.float64) if labels.moments is None else labels.moments[rows]
    if fps:
        return numbers / fps
    assert native is not None
    assert native.times is not None
    start, length = int(native.starts[clip]), int(native.lengths[clip])
    starts = native.times[start : start + length, 0].double().numpy()
    inside = numbers < length
    found = np.full(len(numbers), np.nan)
    found[inside] = starts[numbers[inside].astype(np.int64)]
    return found
