"""Predict every label row of a clip that has no labels, with a head that was trained on labels per frame."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cache.format import Clip
from train_head.data.clock import rows_at_labels
from train_head.data.labels import Labels
from train_head.data.splits import Split, whole_clips
from train_head.data.streams import Stream
from train_head.errors import RunFolderError
from train_head.runs.centring import centred_mean
from train_head.runs.load import Ensemble, TrainedHead, clip_stream
from train_head.training.settings import NEAREST
from train_head.training.trainer import predict

NO_CLOCK = "nothing says when the rows of its predictions are; give --label-fps, such as 25 for a row every 40 ms"


def has_clock(trained: TrainedHead) -> bool:
    """Return whether a run says when label rows are: by their rate, or by a stream whose rows have times."""
    return bool(trained.settings.label_fps) or any(s.header.hop_seconds is None for s in trained.streams.values())


def predict_label_rows(trained: TrainedHead, clips: Mapping[str, Clip | None], fps: float = 0.0) -> NDArray[np.float32]:
    """Predict every label row of a clip as the run predicts its validation split: in its windows, at its clock.

    Row i is at i / fps, to the end of the clip or of the features, whichever is earlier. Where neither `fps` nor the
    run gives a rate, the rows are those of the first stream whose rows have times, as with `--fps native`.

    Args:
        trained: on labels per frame.
        clips: by stream, its features in the cache's dtypes; None where there is nothing of it.
        fps: label rows per second; 0 takes the rate of the run.

    Returns:
        (label rows, targets) float32 on the labels' scale; no rows where nothing says when they are.

    Raises:
        RunFolderError: neither `fps` nor the run says when label rows are.
    """
    if not fps and not has_clock(trained):
        raise RunFolderError(f"{trained.folder}: {NO_CLOCK}")
    fps = fps or trained.settings.label_fps
    streams = {
        name: clip_stream(name, clips.get(name), stream.header).without_empty()
        for name, stream in trained.streams.items()
    }
    there = [clip for clip in clips.values() if clip is not None]
    rows = _count(streams, [clip.seconds for clip in there], fps)
    values = np.full((rows, len(trained.names)), np.nan, np.float32)
    labels = Labels(
        path=str(trained.folder),
        filenames=(there[0].id,),
        ids=(there[0].id,),
        names=trained.names,
        values=values,
        offsets=np.array([0, rows]),
    )
    if not rows:
        return values
    at = rows_at_labels(labels, streams, fps)
    return predict_split(trained, Split(labels, streams, torch.from_numpy(values), whole_clips(labels), at))


def predict_split(trained: TrainedHead, split: Split) -> NDArray[np.float32]:
    """Predict the label rows of clips, smoothed, and centred where there are several runs that are.

    Args:
        trained: on labels per frame.
        split: the clips, with the streams of the head.

    Returns:
        (label rows, targets) float32 on the labels' scale.
    """
    settings, lengths = trained.settings, split.labels.lengths
    rows = split.filled() if settings.missing == NEAREST else split
    samples = rows.windowed(settings.window, settings.hop)
    if not (any(trained.smoothing) or trained.centre):
        return predict(trained.head, samples, overlap=settings.overlap)
    members, weights = list[nn.Module]([trained.head]), [1.0]
    if isinstance(trained.head, Ensemble):
        members, weights = list(trained.head.members), trained.head.weights
    found = [predict(member, samples, overlap=settings.overlap) for member in members]
    smoothed = [
        values if smoothing is None else smoothing.apply(values, lengths)
        for values, smoothing in zip(found, trained.smoothing, strict=True)
    ]
    stacked = np.stack(smoothed).astype(np.float64)
    mean = centred_mean(stacked, weights, lengths.tolist()) if trained.centre else np.average(stacked, 0, weights)
    return mean.astype(np.float32)


def _count(streams: Mapping[str, Stream], seconds: Sequence[float], fps: float) -> int:
    """Return the number of label rows of a clip; with `fps`, of those that lie at least half within it."""
    if not fps:
        return int(next(stream for stream in streams.values() if stream.times is not None).lengths[0])
    covered = max(map(_end, streams.values()))
    known = [length for length in seconds if math.isfinite(length)]
    end = min(covered, max(known)) if known else covered
    return max(1, round(end * fps)) if covered else 0


def _end(stream: Stream) -> float:
    """Seconds at which the rows of the only clip end; 0 where there are none."""
    length = int(stream.lengths[0])
    if stream.times is not None:
        return float(stream.times[length - 1, 1]) if length else 0.0
    assert stream.hop is not None
    return length * stream.hop
