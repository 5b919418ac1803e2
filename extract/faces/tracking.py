"""Follow faces through a clip, and choose the one that the clip is about.

A face continues a track if it overlaps the track's last box, at most a second (or one search) later. A clip gives one
row per picture: where the chosen face was not found, the row is not valid, and its box and landmarks are NaN.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from extract.faces.mtcnn.boxes import overlaps
from extract.faces.mtcnn.detector import Faces
from extract.faces.options import CHOICES, LONGEST, TrackingSettings
from extract.faces.video import Pictures

LEAST_OVERLAP = 0.3
"""Intersection over union of a face with the box before. A head that moves by half its width in a step has a third."""
LONGEST_GAP = 1.0
"""Seconds without a face within a track."""
# Tracks shorter than this share of the longest one are false alarms or people who walk by: not chosen, not counted.
_FLEETING = 0.1
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class ChosenFace:
    """The face of a clip, row by row.

    Attributes:
        valid: (rows,) bool, whether the face was found, or lies between two pictures in which it was.
        times: (rows, 2) float64, start and end in seconds.
        boxes: (rows, 4) float32 in pixels of the picture as `Pictures` gives it; NaN where not valid.
        landmarks: (rows, 5, 2) float32; NaN where not valid.
        scores: (rows,) float32, the detector's probability, 0 where not valid.
        others: number of other faces in the clip, fleeting ones not counted.
        track: number of the face's track, counted from 1 as they appear; 0 where no face was found.
        share_without: fraction of rows that are not valid.
    """

    valid: NDArray[np.bool_]
    times: NDArray[np.float64]
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]
    others: int
    track: int

    @property
    def share_without(self) -> float:
        """See the attributes."""
        return float(1 - self.valid.mean()) if len(self.valid) else 1.0


@dataclass(slots=True, eq=False)
class Track:
    """One face: the rows in which it was found, in order, and (n, 15) of box, landmarks and score there."""

    rows: list[int] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)
    time: float = 0.0

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(n, 4)."""
        return np.array(self.values, np.float32)[:, :4]

    def add(self, row: int, time: float, values: NDArray[np.float32]) -> None:
        """Continue the track."""
        self.rows.append(row)
        self.values.append(values)
        self.time = time


def track_faces(
    blocks: Iterable[Pictures],
    detect: Callable[[NDArray[np.uint8]], list[Faces]],
    settings: TrackingSettings = LONGEST,
) -> ChosenFace:
    """Find the faces of a clip, follow them and choose one.

    Args:
        blocks: the pictures of a clip.
        detect: finds the faces of (pictures, height, width, 3), as `Detector` does.
        settings: which face, and how often it is searched.

    Raises:
        MediaError: the clip cannot be read.
    """
    tracks: list[Track] = []
    searched: list[int] = []
    times: list[NDArray[np.float64]] = []
    size, start = (1, 1), 0
    for block, is_last in _marking_last(blocks):
        times.append(block.times)
        size = block.images.shape[1:3]
        at = np.arange(start, start + len(block.images))
        due = block.shown & ((at % settings.detect_every == 0) | (is_last & (at == at[-1])))
        for row, faces in zip(at[due].tolist(), detect(block.images[due]) if due.any() else [], strict=True):
            time = float(block.times[row - start, 0])
            before = searched[-1] if searched else -1
            active = [t for t in tracks if t.rows[-1] == before or time - t.time <= LONGEST_GAP + 1e-6]
            tracks += _followed(active, row, time, faces)
            searched.append(row)
        start += len(block.images)
    all_times = np.concatenate(times) if times else np.zeros((0, 2))
    chosen = choose(tracks, settings, size)
    longest = max((len(track.rows) for track in tracks), default=0)
    others = sum(track is not chosen and len(track.rows) >= _FLEETING * longest for track in tracks)
    number = next((i for i, track in enumerate(tracks, 1) if track is chosen), 0)
    return _per_row(chosen, searched, all_times, others, number)


def choose(tracks: list[Track], settings: TrackingSettings, size: tuple[int, int]) -> Track | None:
    """Return the track that the settings ask for, or None where there is none.

    Args:
        tracks: of a clip.
        settings: `face` says which.
        size: height and width of the pictures.
    """
    longest = max((len(track.rows) for track in tracks), default=0)
    candidates = [track for track in tracks if len(track.rows) >= _FLEETING * longest]
    if settings.face not in CHOICES:
        x0, y0, x1, y1 = np.array(settings.region()) * [size[1], size[0], size[1], size[0]]
        candidates = [t for t in tracks if x0 <= _centre(t)[0] < x1 and y0 <= _centre(t)[1] < y1]
    orders: dict[str, Callable[[Track], float]] = {
        "largest": _area,
        "first": lambda track: -track.rows[0],
        "left": lambda track: -float(_centre(track)[0]),
        "right": lambda track: float(_centre(track)[0]),
    }
    order = orders.get(settings.face, lambda track: len(track.rows))
    return max(candidates, key=lambda track: (order(track), len(track.rows), _area(track)), default=None)


def _centre(track: Track) -> NDArray[np.float32]:
    return track.boxes.reshape(-1, 2).mean(axis=0)


def _area(track: Track) -> float:
    boxes = track.boxes
    return float((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).mean())


def _followed(active: list[Track], row: int, time: float, faces: Faces) -> list[Track]:
    """Let each face continue the track whose last box it overlaps most, the best pairs first; return new tracks."""
    values = np.concatenate([faces.boxes, faces.landmarks.reshape(-1, 10), faces.scores[:, None]], axis=1)
    last = np.array([track.values[-1][:4] for track in active], np.float32).reshape(-1, 4)
    common = overlaps(faces.boxes, last)
    continued = np.zeros(len(faces), bool)
    while common.size and common.max() >= LEAST_OVERLAP:
        face, old = np.unravel_index(common.argmax(), common.shape)
        active[old].add(row, time, values[face])
        continued[face] = True
        common[face], common[:, old] = -1, -1
    new = [Track() for _ in range(int((~continued).sum()))]
    for track, face in zip(new, np.flatnonzero(~continued), strict=True):
        track.add(row, time, values[face])
    return new


def _per_row(
    chosen: Track | None, searched: list[int], times: NDArray[np.float64], others: int, number: int
) -> ChosenFace:
    """Spread a track over all rows: between two searched pictures in a row that show the face, it is interpolated."""
    count = len(times)
    values = np.full((count, 15), np.nan, np.float32)
    if chosen is not None:
        found, numbers = np.array(chosen.rows), np.array(chosen.values, np.float32)
        values[found] = numbers
        order = np.searchsorted(searched, found)
        for i in np.flatnonzero((np.diff(order) == 1) & (np.diff(found) > 1)):
            (first, last), between = found[i : i + 2], np.arange(found[i] + 1, found[i + 1])
            share = ((times[between, :1] - times[first, 0]) / (times[last, 0] - times[first, 0])).astype(np.float32)
            values[between] = numbers[i] + share * (numbers[i + 1] - numbers[i])
    valid = ~np.isnan(values[:, 0])
    landmarks = values[:, 4:14].reshape(count, 5, 2)
    return ChosenFace(valid, times, values[:, :4], landmarks, np.where(valid, values[:, 14], 0), others, number)


def _marking_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield each item, and whether it is the last."""
    waiting: list[Item] = []
    for item in items:
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    if waiting:
        yield waiting.pop(), True
