"""Read a clip as crops of one face: of a video, in two passes, so that no more than a block is in memory."""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.audio.media import open_container
from extract.audio.structure import stated_seconds
from extract.audio.track import clock_zero
from extract.errors import MediaError
from extract.faces.align import CROP_SIDE, SIDES, cut_out
from extract.faces.image_times import at_frames
from extract.faces.images import image_names, read_images
from extract.faces.mtcnn import Detector, DetectorSettings
from extract.faces.options import BLACK
from extract.faces.tracking import track_faces
from extract.faces.video import Video, choose_video
from extract.modality.protocol import Item
from extract.settings import DecodeOptions
from extract.threads import one_thread_per_operation

if TYPE_CHECKING:
    from extract.faces.options import FaceOptions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FaceCrops(Item):
    """The face of a clip, row by row; at least one row.

    Attributes:
        images: (rows, side, side, 3) uint8 RGB, zeros where not valid, none of a long clip; of a folder of images, one
            (height, width, 3) per row, as they are there.
        valid: (rows,) bool, whether the face was found.
        times: (rows, 2) float64, start and end in seconds; None where rows have a fixed hop.
        boxes: (rows, 4) float32 in pixels of the upright picture; NaN where not valid, and of crops that were given.
        landmarks: (rows, 5, 2) float32, likewise.
        scores: (rows,) float32, the detector's probabilities; 0 where there is none.
        face_track: number of the face's track in the clip; 0 where there is none, and of crops that were given.
        max_seconds: cut with which the clip was read, and a long one is read again.
        black: whether a row that is not valid has the features of a black picture.
    """

    images: NDArray[np.uint8] | list[NDArray[np.uint8]]
    valid: NDArray[np.bool_]
    times: NDArray[np.float64] | None
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]
    face_track: int = 0
    max_seconds: float | None = None
    black: bool = False

    @property
    def computed(self) -> NDArray[np.bool_]:
        """(rows,) bool, whether a row has features."""
        return np.ones_like(self.valid) if self.black else self.valid

    @property
    def faces(self) -> list[NDArray[np.uint8]]:
        """The images of the rows that have features; of a row without an image, a black one."""
        images = (self.images[row] for row in np.flatnonzero(self.computed))
        return [image if image.size else np.zeros((CROP_SIDE, CROP_SIDE, 3), np.uint8) for image in images]


class FaceReader:
    """Reads the crops of clips; the detector is loaded once per setting.

    Each clip is searched with one torch thread, as bytes must not depend on the number of cores.

    Args:
        longest_rows: rows of aligned crops, in whose memory a whole clip must fit; a longer one is `Item.long`, with
            the places of its face and without images, which `CropRecording` gives.
    """

    def __init__(self, longest_rows: int) -> None:
        self._longest_rows = longest_rows
        self._detectors: dict[int, Detector] = {}

    def __call__(
        self, path: Path, max_seconds: float | None, options: DecodeOptions, video: Path | None = None
    ) -> FaceCrops:
        """Find the face of a video, then read the video again to cut it out; of a folder, read the images.

        A clip in which no face is found is one row that is not valid.

        Args:
            path: of a video, or of a folder of images.
            max_seconds: cut of the clip.
            options: which rows and which face.
            video: whose frames the images are, which gives them their times.

        Raises:
            MediaError: the clip cannot be read, with the reason.
            BackboneError: the detector's weights are not installed.
        """
        faces = options.faces
        if path.is_dir():
            return self._of_images(path, video, max_seconds, options)
        with one_thread_per_operation():
            return self._of_video(path, max_seconds, options, faces)

    def _of_images(
        self, folder: Path, video: Path | None, max_seconds: float | None, options: DecodeOptions
    ) -> FaceCrops:
        """Read a folder of images; see `extract.faces.images`. Those of a long one are only looked at."""
        names, times, seconds, remark = _timed(folder, video, max_seconds, options)
        images, valid, problems = list[NDArray[np.uint8]](), np.zeros(len(names), np.bool_), list[str]()
        long, room, row = len(names) > self._longest_rows, 3 * CROP_SIDE**2 * self._longest_rows, 0
        for part, there, broken in read_images(folder, names):
            valid[row : row + len(there)] = there
            room -= sum(image.nbytes for image in part)
            long = long or room < 0
            images = [] if long else images + part
            row += len(there)
            problems += broken
        if problems and not valid.any():
            raise MediaError(f"has no image that can be read: {problems[0]}")
        if problems:
            images_of = "1 image that" if len(problems) == 1 else f"{len(problems)} images that"
            remark += f"{'; ' * bool(remark)}has {images_of} cannot be read, first {problems[0]}"
        black = options.faces.missing_faces == BLACK
        if not valid.any() and not black:
            end = seconds if times is None else float(times[-1, 1])
            return replace(nothing_found(seconds, "", options.faces, end), remark=remark)
        return FaceCrops(
            seconds=seconds,
            long=long,
            max_seconds=max_seconds,
            remark=remark,
            images=images,
            valid=valid,
            times=times,
            boxes=np.full((len(valid), 4), np.nan, np.float32),
            landmarks=np.full((len(valid), 5, 2), np.nan, np.float32),
            scores=np.zeros(len(valid), np.float32),
            **_in_black(valid, black),
        )

    def _of_video(
        self, path: Path, max_seconds: float | None, options: DecodeOptions, faces: "FaceOptions"
    ) -> FaceCrops:
        if faces.min_face not in self._detectors:
            self._detectors[faces.min_face] = Detector(DetectorSettings(min_face=faces.min_face))
        video = Video(path, fps=faces.fps, max_seconds=max_seconds, options=options)
        found = track_faces(video, self._detectors[faces.min_face], faces)
        if not len(found.valid):
            raise MediaError("has no picture before the cut")
        black = faces.missing_faces == BLACK
        if not found.valid.any() and not black:
            empty = nothing_found(video.seconds, video.cut_off, faces, float(found.times[-1, 1]))
            return replace(empty, others=found.others)
        long = len(found.valid) * SIDES[faces.crop] ** 2 > self._longest_rows * CROP_SIDE**2
        images = _no_images(0 if long else len(found.valid), faces)
        if not long:
            again = Video(path, fps=faces.fps, max_seconds=max_seconds, options=options)
            row = 0
            for part in _cut_out(again, found.valid, found.boxes, found.landmarks, faces.crop):
                images[row : row + len(part)] = part
                row += len(part)
        return FaceCrops(
            seconds=video.seconds,
            cut_off=video.cut_off,
            long=long,
            max_seconds=max_seconds,
            remark=video.note,
            images=images,
            valid=found.valid,
            times=found.times if faces.fps is None else None,
            boxes=found.boxes,
            landmarks=found.landmarks,
            scores=found.scores,
            others=found.others,
            face_track=found.track,
            **_in_black(found.valid, black),
        )


def _in_black(valid: NDArray[np.bool_], black: bool) -> dict[str, Any]:
    """Return the fields of a clip that say whether its missing faces are black, and how many they are."""
    return {"black": True, "missing": 1 - float(valid.mean())} if black else {}


def _timed(
    folder: Path, video: Path | None, max_seconds: float | None, options: DecodeOptions
) -> tuple[list[str], NDArray[np.float64] | None, float, str]:
    """Return the images of a folder up to the cut: names and times by row, seconds before the cut, and a remark."""
    fps = options.faces.fps
    names, table = image_names(folder, fps)
    if fps is not None:
        used = len(names) if max_seconds is None else math.ceil(max_seconds * fps - 1e-6)
        return names[:used], None, len(names) / fps, ""
    if table is not None:
        times = table.times_until(max_seconds)
        if not len(times):
            raise MediaError("has no picture before the cut")
        return names[: len(times)], times, float(table.times[-1, 1]), ""
    if video is None:
        raise MediaError(
            "is a folder of images, which have no times of their own; give their rate, as --fps 25, or the folder of "
            "their videos with --videos"
        )
    film = Video(video, fps=None, max_seconds=max_seconds, options=options)
    try:
        times, whole = film.frame_times()
    except MediaError as error:
        raise MediaError(f"has a video, {video}, that {error}") from error
    if not len(times):
        raise MediaError(f"has no picture before the cut, by the times of {video}")
    names, remark = at_frames(names, video.name, len(times), whole=whole)
    return names, times, film.seconds, remark


def nothing_found(seconds: float, cut_off: str, options: "FaceOptions", end: float) -> FaceCrops:
    """Return a clip of one row that is not valid, which lasts to `end` where rows have times."""
    return FaceCrops(
        seconds=seconds,
        cut_off=cut_off,
        images=_no_images(1, options),
        valid=np.zeros(1, np.bool_),
        times=np.array([[0.0, end]]) if options.fps is None else None,
        boxes=np.full((1, 4), np.nan, np.float32),
        landmarks=np.full((1, 5, 2), np.nan, np.float32),
        scores=np.zeros(1, np.float32),
    )


class CropRecording:
    """See `extract.modality.protocol.Recording`: (rows, side, side, 3) uint8, zeros where there is no face.

    Args:
        path: of a video, or of a folder of images.
        item: in which the face has been found.
        options: as then.
    """

    def __init__(self, path: Path, item: FaceCrops, options: DecodeOptions) -> None:
        self._path, self._item, self._options = path, item, options
        self.seconds, self.cut_off = item.seconds, item.cut_off
        self.times: NDArray[np.float64] | None = item.times
        self.valid: NDArray[np.bool_] | None = item.computed

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """See `Recording`."""
        faces, item = self._options.faces, self._item
        if not self._path.is_dir():
            video = Video(self._path, fps=faces.fps, max_seconds=item.max_seconds, options=self._options)
            return _cut_out(video, item.valid, item.boxes, item.landmarks, faces.crop)
        names = image_names(self._path, faces.fps)[0][: len(item.valid)]
        return _again(self._path, names + [""] * (len(item.valid) - len(names)), item.valid)


def _again(folder: Path, names: Sequence[str], valid: NDArray[np.bool_]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a folder in blocks of one size.

    Raises:
        MediaError: the folder changed after it was first read.
    """
    row = 0
    for images, there, _ in read_images(folder, names):
        if not np.array_equal(there, valid[row : row + len(there)]):
            raise MediaError("changed while it was being read")
        row += len(there)
        for _, run in itertools.groupby(images, key=np.shape):
            block = np.stack(list(run))
            yield block if block.size else np.zeros((len(block), CROP_SIDE, CROP_SIDE, 3), np.uint8)


def _no_images(rows: int, options: "FaceOptions") -> NDArray[np.uint8]:
    side = SIDES[options.crop]
    return np.zeros((rows, side, side, 3), np.uint8)


def _cut_out(
    video: Video, valid: NDArray[np.bool_], boxes: NDArray[np.float32], landmarks: NDArray[np.float32], crop: str
) -> Iterator[NDArray[np.uint8]]:
    """Yield the crops of a video in blocks.

    Raises:
        MediaError: the file changed after the face was found.
    """
    start = 0
    for block in video:
        rows = slice(start, start + len(block.images))
        here, start = valid[rows], rows.stop
        if start > len(valid):
            break
        images = np.zeros((len(here), SIDES[crop], SIDES[crop], 3), np.uint8)
        images[here] = cut_out(block.images[here], boxes[rows][here], landmarks[rows][here], crop)
        yield images
    if start != len(valid):
        raise MediaError("changed while it was being read")


def header_seconds(path: Path) -> float | None:
    """Return the length of a video that its header states, or None. Nothing is decoded."""
    try:
        with ExitStack() as opened:
            container = open_container(path, opened)
            stated = stated_seconds(container, choose_video(container), path, clock_zero(container))
            return stated or (container.duration / 1e6 if container.duration else None)
    except (av.error.FFmpegError, OSError, ValueError, MediaError):
        return None
