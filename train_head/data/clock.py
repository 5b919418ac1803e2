"""The reference clock: when a label row is, or a row of one stream, and which row of each stream holds then."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from train_head.data.labels import Labels
from train_head.data.streams import Rows, Stream, refuse_timeless, rows_at
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
