"""Find the faces of a batch of pictures: proposals over a pyramid, refinement, boxes with five landmarks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import ExtractSettingsError
from extract.faces.mtcnn.areas import AreaTable
from extract.faces.mtcnn.boxes import Boxes, corrected, squares, without_doubles
from extract.faces.mtcnn.networks import ACTIVATIONS, CropNet, output_net, proposal_net, refinement_net
from extract.faces.options import SMALLEST

WINDOW, STRIDE = SMALLEST, 2
"""P-Net's windows and their distance, in pixels."""
REFINEMENT_SIDE, OUTPUT_SIDE = 24, 48
"""Pixels of the crops that R-Net and O-Net see."""
EMBEDDED = ACTIVATIONS + 10
"""Numbers per face: O-Net's activations and its five landmarks."""
CROPS = 512
"""Crops that go through a network at a time."""
TABLE_BYTES = 24 << 20
"""Summed-area tables at a time (12 bytes per pixel): more pictures at a time leave the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """How faces are found.

    Attributes:
        min_face: side of the smallest face, in pixels of the picture.
        thresholds: lowest probability of a face in P-Net, R-Net and O-Net.
        factor: between the sizes of two levels of the pyramid.
    """

    min_face: int = 40
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    factor: float = 0.709

    def __post_init__(self) -> None:
        if self.min_face < WINDOW:
            raise ExtractSettingsError(f"--min-face: at least {WINDOW} pixels, got {self.min_face}")
        if not all(0 < threshold < 1 for threshold in self.thresholds) or not 0 < self.factor < 1:
            raise ExtractSettingsError(
                f"thresholds and factor lie between 0 and 1, got {self.thresholds} and {self.factor}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The faces of one picture, the most probable first.

    Attributes:
        boxes: (faces, 4) float32, left, top, right, bottom in pixels; may reach beyond the picture.
        scores: (faces,) float32, probabilities.
        landmarks: (faces, 5, 2) float32, x and y in pixels: left eye, right eye (as seen), nose, corners of the mouth.
    """

    boxes: Boxes
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


NO_FACES = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


class Detector:
    """MTCNN; boxes are those of facenet-pytorch, which runs the same weights picture by picture.

    Args:
        settings: how faces are found.
        device: to compute on.

    Raises:
        BackboneError: the weights are not installed.
    """

    def __init__(self, settings: DetectorSettings = DetectorSettings(), device: torch.device | str = "cpu") -> None:
        self.settings, self.device = settings, torch.device(device)
        self._proposals = proposal_net().to(self.device)
        self._refinement = refinement_net().to(self.device)
        self._output = output_net().to(self.device)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> list[Faces]:
        """Find the faces of (pictures, height, width, 3) uint8 RGB."""
        _, height, width, _ = images.shape
        if min(height, width) < self.settings.min_face:
            return [NO_FACES] * len(images)
        step = max(1, TABLE_BYTES // (12 * height * width))
        found: list[Faces] = []
        for at in range(0, len(images), step):
            found += self._detect(torch.from_numpy(images[at : at + step]).to(self.device))
        return found

    @torch.inference_mode()
    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what O-Net sees in square crops of faces.

        Args:
            crops: (crops, side, side, 3) uint8 RGB.

        Returns:
            (crops, 266) float32: the 256 activations before the outputs, then the landmarks as fractions of the crop
            (five x, five y).
        """
        found = [np.zeros((0, EMBEDDED), np.float32)]
        for at in range(0, len(crops), CROPS):
            images = torch.from_numpy(crops[at : at + CROPS]).to(self.device)
            hidden = self._output.activations(AreaTable(images).resized(OUTPUT_SIDE, OUTPUT_SIDE))
            found.append(torch.cat([hidden, self._output.heads[1](hidden)], dim=1).cpu().numpy())
        return np.concatenate(found)

    def _detect(self, images: Tensor) -> list[Faces]:
        table = AreaTable(images)
        _, middle, high = self.settings.thresholds
        found = self._proposed(table)
        found, (corrections,) = self._judged(self._refinement, table, found, REFINEMENT_SIDE, middle)
        kept = found.without_doubles(0.7)
        found = found[kept].moved_to(squares(corrected(found.boxes[kept], corrections[kept])))
        found, (corrections, landmarks) = self._judged(self._output, table, found, OUTPUT_SIDE, high)
        corner, size = found.boxes[:, None, :2], found.boxes[:, None, 2:] - found.boxes[:, None, :2] + 1
        points = size * landmarks.reshape(-1, 2, 5).transpose(0, 2, 1) + corner - 1
        found = found.moved_to(corrected(found.boxes, corrections))
        kept = found.without_doubles(0.7, of_smaller=True)
        found, points = found[kept], points[kept]
        return [
            Faces(found.boxes[of], found.scores[of], points[of])
            for of in (np.flatnonzero(found.pictures == picture) for picture in range(len(images)))
        ]

    def _proposed(self, table: AreaTable) -> "_Candidates":
        """Return the squares in which P-Net suspects faces, over all levels of the pyramid."""
        levels, corrections = [_Candidates.none()], [np.zeros((0, 4), np.float32)]
        for scale in self._scales(table.height, table.width):
            size = int(table.height * scale + 1), int(table.width * scale + 1)
            states, scores = self._proposals(table.resized(*size))
            where = (scores >= self.settings.thresholds[0]).nonzero()
            picture, row, column = where.unbind(1)
            corner = where[:, 1:].flip(1).cpu().numpy().astype(np.float32) * STRIDE
            edges = np.concatenate([corner + 1, corner + WINDOW], axis=1) / np.float32(scale)
            level = _Candidates(
                picture.cpu().numpy(), np.floor(edges), scores[picture, row, column].float().cpu().numpy()
            )
            kept = level.without_doubles(0.5)
            levels.append(level[kept])
            passed = self._proposals.corrections(states[picture, row, column])
            corrections.append(passed.float().cpu().numpy()[kept])
        found, moved = _Candidates.joined(levels), np.concatenate(corrections)
        kept = found.without_doubles(0.7)
        return found[kept].moved_to(squares(corrected(found.boxes[kept], moved[kept], pixel=0)))

    def _scales(self, height: int, width: int) -> list[float]:
        scales = [WINDOW / self.settings.min_face]
        side = min(height, width) * scales[0]
        while (side := side * self.settings.factor) >= WINDOW:
            scales.append(scales[-1] * self.settings.factor)
        return scales

    def _judged(
        self, net: CropNet, table: AreaTable, found: "_Candidates", side: int, threshold: float
    ) -> "tuple[_Candidates, list[NDArray[np.float32]]]":
        """Return the candidates that a network takes for faces, with its other outputs for them."""
        edges = found.boxes.astype(np.int64)  # towards zero; the original counts pixels from 1
        edges = np.concatenate(
            [np.maximum(edges[:, :2], 1) - 1, np.minimum(edges[:, 2:], [table.width, table.height])], axis=1
        )
        within = (edges[:, 2:] > edges[:, :2]).all(axis=1)
        found, crops = found[within], torch.from_numpy(edges[within]).to(self.device)
        pictures = torch.from_numpy(found.pictures).to(self.device)
        parts = [net(table.crops(*part, side)) for part in zip(pictures.split(CROPS), crops.split(CROPS), strict=True)]
        *outputs, scores = (torch.cat(part).float().cpu().numpy() for part in zip(*parts, strict=True))
        passed = scores > threshold
        return replace(found, scores=scores)[passed], [output[passed] for output in outputs]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Boxes in pictures of a batch: (n,) int64 pictures, (n, 4) float32 boxes, (n,) float32 scores."""

    pictures: NDArray[np.int64]
    boxes: Boxes
    scores: NDArray[np.float32]

    @staticmethod
    def none() -> "_Candidates":
        return _Candidates(np.zeros(0, np.int64), NO_FACES.boxes, NO_FACES.scores)

    @staticmethod
    def joined(parts: "Sequence[_Candidates]") -> "_Candidates":
        return _Candidates(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(_Candidates)))

    def __getitem__(self, rows: Any) -> "_Candidates":
        return _Candidates(self.pictures[rows], self.boxes[rows], self.scores[rows])

    def moved_to(self, boxes: Boxes) -> "_Candidates":
        return replace(self, boxes=boxes)

    def without_doubles(self, threshold: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
        """Return the indices that remain after suppression within each picture."""
        kept = [np.zeros(0, np.int64)]
        for picture in np.unique(self.pictures):
            of = np.flatnonzero(self.pictures == picture)
            kept.append(of[without_doubles(self.boxes[of], self.scores[of], threshold, of_smaller=of_smaller)])
        return np.concatenate(kept)
