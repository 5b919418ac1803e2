"""Read a clip as aligned crops of one face: of a video, in two passes, so that no more than a block is in memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from extract.audio.media import open_container
from extract.audio.structure import stated_seconds
from extract.audio.track import clock_zero
from extract.errors import MediaError
from extract.faces.align import CROP_SIDE, crops, onto_template
from extract.faces.images import read_images
from extract.faces.mtcnn import Detector, DetectorSettings
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
        images: (rows, 112, 112, 3) uint8 RGB, aligned; zeros where not valid; none of a long clip.
        valid: (rows,) bool, whether the face was found.
        times: (rows, 2) float64, start and end in seconds; None where rows have a fixed hop.
        boxes: (rows, 4) float32 in pixels of the upright picture; NaN where not valid, and of crops that were given.
        landmarks: (rows, 5, 2) float32, likewise.
        scores: (rows,) float32, the detector's probabilities; 0 where there is none.
        others: number of other faces in the clip.
    """

    images: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    times: NDArray[np.float64] | None
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]
    others: int = 0


class FaceReader:
    """Reads the crops of clips; the detector is loaded once per setting.

    Each clip is searched with one torch thread, as bytes must not depend on the number of cores.

    Args:
        longest_held: seconds up to which a whole clip is cut out; a longer one is `Item.long`, with the places of its
            face and without images, which `CropRecording` gives.
    """

    def __init__(self, longest_held: float) -> None:
        self._longest_held = longest_held
        self._detectors: dict[int, Detector] = {}

    def __call__(self, path: Path, max_seconds: float | None, options: DecodeOptions) -> FaceCrops:
        """Find the face of a video, then read the video again to cut it out; of a folder, read the images.

        A clip in which no face is found is one row that is not valid.

        Raises:
            MediaError: the clip cannot be read, with the reason.
            BackboneError: the detector's weights are not installed.
        """
        faces = options.faces
        if path.is_dir():
            return _given_crops(path, max_seconds, faces)
        with one_thread_per_operation():
            return self._of_video(path, max_seconds, options, faces)

    def _of_video(
        self, path: Path, max_seconds: float | None, options: DecodeOptions, faces: "FaceOptions"
    ) -> FaceCrops:
        if faces.min_face not in self._detectors:
            self._detectors[faces.min_face] = Detector(DetectorSettings(min_face=faces.min_face))
        video = Video(path, fps=faces.fps, max_seconds=max_seconds, options=options)
        found = track_faces(video, self._detectors[faces.min_face], faces)
        if not len(found.valid):
            raise MediaError("has no picture before the cut")
        if not found.valid.any():
            return nothing_found(video.seconds, video.cut_off, faces, float(found.times[-1, 1]))
        long = max_seconds is None and float(found.times[-1, 1]) > self._longest_held
        images = np.zeros((0 if long else len(found.valid), CROP_SIDE, CROP_SIDE, 3), np.uint8)
        if not long:
            again = Video(path, fps=faces.fps, max_seconds=max_seconds, options=options)
            row = 0
            for part in _cut_out(again, found.valid, found.landmarks):
                images[row : row + len(part)] = part
                row += len(part)
        return FaceCrops(
            seconds=video.seconds,
            cut_off=video.cut_off,
            long=long,
            images=images,
            valid=found.valid,
            times=found.times if faces.fps is None else None,
            boxes=found.boxes,
            landmarks=found.landmarks,
            scores=found.scores,
            others=found.others,
        )


def _given_crops(folder: Path, max_seconds: float | None, options: "FaceOptions") -> FaceCrops:
    """Read a folder of images; see `extract.faces.images`."""
    if options.fps is None:
        raise MediaError("is a folder of images, which have no times of their own; give their rate, as --fps 25")
    images, valid, seconds = read_images(folder, options.fps, max_seconds)
    if not valid.any():
        return nothing_found(seconds, "", options, seconds)
    return FaceCrops(
        seconds=seconds,
        images=images,
        valid=valid,
        times=None,
        boxes=np.full((len(valid), 4), np.nan, np.float32),
        landmarks=np.full((len(valid), 5, 2), np.nan, np.float32),
        scores=np.zeros(len(valid), np.float32),
    )


def nothing_found(seconds: float, cut_off: str, options: "FaceOptions", end: float) -> FaceCrops:
    """Return a clip of one row that is not valid, which lasts to `end` where rows have times."""
    return FaceCrops(
        seconds=seconds,
        cut_off=cut_off,
        images=np.zeros((1, CROP_SIDE, CROP_SIDE, 3), np.uint8),
        valid=np.zeros(1, np.bool_),
        times=np.array([[0.0, end]]) if options.fps is None else None,
        boxes=np.full((1, 4), np.nan, np.float32),
        landmarks=np.full((1, 5, 2), np.nan, np.float32),
        scores=np.zeros(1, np.float32),
    )


class CropRecording:
    """See `extract.modality.Recording`: (rows, 112, 112, 3) uint8, zeros where not valid.

    Args:
        path: of a video.
        item: in which the face has been found.
        options: as then.
    """

    def __init__(self, path: Path, item: FaceCrops, options: DecodeOptions) -> None:
        self._path, self._item, self._options = path, item, options
        self.seconds, self.cut_off = item.seconds, item.cut_off
        self.times: NDArray[np.float64] | None = item.times
        self.valid: NDArray[np.bool_] | None = item.valid

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """See `Recording`."""
        video = Video(self._path, fps=self._options.faces.fps, options=self._options)
        return _cut_out(video, self._item.valid, self._item.landmarks)


def _cut_out(video: Video, valid: NDArray[np.bool_], landmarks: NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
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
        images = np.zeros((len(here), CROP_SIDE, CROP_SIDE, 3), np.uint8)
        images[here] = crops(block.images[here], onto_template(landmarks[rows][here]))
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
