"""Which rows and which face of a clip are used. Importing this module imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from extract.errors import ExtractSettingsError

CHOICES = ("longest", "largest", "first", "left", "right")
CROPS = {"aligned": "arcface 112", "square": "square 1.3 x box, 224"}
"""How faces are cut out, and how fingerprints hold that; see `extract.faces.align`."""
INVALID, BLACK = MISSING_FACES = ("invalid", "black")
"""What a row without a face is: not valid, or the features of a black picture."""
NATIVE = "native"
"""What users type, and fingerprints hold, for every frame of the video."""
SMALLEST = 12
"""Pixels: the side of the windows in which the detector looks."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Which face of a clip is used, and how often faces are searched.

    Attributes:
        face: longest (in most pictures), largest (mean area), first (to appear), left, right (mean position), or a
            region "x0,y0,x1,y1" in fractions of the picture, where the face that is longest within it is used.
        detect_every: faces are searched in every n-th picture and the last; boxes and landmarks between two pictures
            with the face are interpolated.
    """

    face: str = "longest"
    detect_every: int = 1

    def __post_init__(self) -> None:
        if self.detect_every < 1:
            raise ExtractSettingsError(f"--detect-every: 1 or more pictures, got {self.detect_every}")
        if self.face not in CHOICES:
            self.region()

    def region(self) -> tuple[float, float, float, float]:
        """Return the region as (x0, y0, x1, y1).

        Raises:
            ExtractSettingsError: it is none.
        """
        try:
            x0, y0, x1, y1 = (float(part) for part in self.face.split(","))
        except ValueError:
            x0 = y0 = x1 = y1 = -1.0
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ExtractSettingsError(
                f"--face takes {', '.join(CHOICES)} or a region in fractions of the picture, for example 0,0,0.5,1 for "
                f"its left half; got {self.face!r}"
            )
        return x0, y0, x1, y1


LONGEST = TrackingSettings()


@dataclass(frozen=True, kw_only=True)
class FaceOptions(TrackingSettings):
    """From a video to the crops of one face.

    Attributes:
        fps: rows per second; None gives a row per frame of the video.
        min_face: side of the smallest face, in pixels of the picture.
        crop: key in `CROPS`.
        missing_faces: what a row without a face is: one of `MISSING_FACES`.
    """

    fps: float | None = 6.0
    min_face: int = 40
    crop: str = "aligned"
    missing_faces: str = INVALID

    def __post_init__(self) -> None:
        TrackingSettings.__post_init__(self)
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ExtractSettingsError(f"--fps: rows per second above zero, or {NATIVE}, got {self.fps}")
        if self.min_face < SMALLEST:
            raise ExtractSettingsError(f"--min-face: at least {SMALLEST} pixels, got {self.min_face}")
        if self.crop not in CROPS:
            raise ExtractSettingsError(f"--crop takes {' or '.join(CROPS)}, got {self.crop!r}")
        if self.missing_faces not in MISSING_FACES:
            raise ExtractSettingsError(
                f"--missing-faces takes {' or '.join(MISSING_FACES)}, got {self.missing_faces!r}"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return all options as a fingerprint holds them; without `missing_faces`, such rows are not valid."""
        held = {**asdict(self), "fps": NATIVE if self.fps is None else float(self.fps), "crop": CROPS[self.crop]}
        if self.missing_faces == INVALID:
            del held["missing_faces"]
        return held


DEFAULT = FaceOptions()


def options_made_with(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a fingerprint holds, by name; those of audio has none."""
    typed = {NATIVE: None} | {held: name for name, held in CROPS.items()}
    found = {field.name: fingerprint[field.name] for field in fields(FaceOptions) if field.name in fingerprint}
    return {name: typed.get(value, value) for name, value in found.items()}
