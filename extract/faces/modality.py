"""Faces as a modality: crops of one face per clip. Importing this module imports neither PyAV nor torch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extract.faces.package import WEIGHTS_SHA256
from extract.modality.protocol import Modality, Read, Recording
from extract.settings import DecodeOptions, ExtractSettings
from extract.sources import Source

if TYPE_CHECKING:
    import torch

    from extract.backbones.protocol import Identity
    from extract.faces.reading import FaceCrops

DECODER = 1
"""Version of how videos become crops, in the fingerprint."""
ROWS_PER_SECOND = 6


class Face:
    """See `Modality`. The cost of a clip is its number of rows.

    A process that decodes finds the face and cuts it out, which takes longer than a backbone on the crops.
    """

    name = "face"
    medium = "video"
    cost_per_second = ROWS_PER_SECOND
    window_seconds = 192.0
    """Three windows are in memory at a time: at 6 rows a second 3 x 43 MB of aligned crops, 3 x 173 MB of squares."""
    longest_held = 60.0
    longest_rows = 1800
    """Of a clip whose crops are held (68 MB); those of a longer one are cut out in blocks."""
    bytes_per_second = 1 << 20
    marks = True
    packages: tuple[str, ...] = ("torch", "av", "mtcnn")

    def hop_seconds(self, identity: "Identity", settings: ExtractSettings) -> float | None:  # noqa: ARG002
        """See `Modality`."""
        return None if settings.fps is None else 1 / settings.fps

    def fingerprint(self, settings: ExtractSettings) -> Mapping[str, Any]:
        """See `Modality`. A fingerprint without `max_seconds` is that of whole clips."""
        return {
            "decoder": DECODER,
            **settings.decoding.faces.fingerprint(),
            "detector_sha256": WEIGHTS_SHA256,
            **({} if settings.max_seconds is None else {"max_seconds": float(settings.max_seconds)}),
        }

    def reader(self) -> Read:
        """See `Modality`. torch is imported when the first clip is read, so that a process starts at once."""
        readers: list[Any] = []

        def read_source(source: Source, max_seconds: float | None, options: DecodeOptions) -> "FaceCrops":
            from extract.faces.reading import FaceReader

            if not readers:
                readers.append(FaceReader(self.longest_rows))
            crops: FaceCrops = readers[0](source.path, max_seconds, options, source.video)
            return crops

        return read_source

    def finish(self, read: "FaceCrops", max_seconds: float | None) -> "FaceCrops":  # noqa: ARG002
        """Return the clip as it is."""
        return read

    def record(self, item: "FaceCrops", source: Source, options: DecodeOptions) -> Recording:
        """See `Modality`."""
        from extract.faces.reading import CropRecording

        return CropRecording(source.path, item, options)

    def cost(self, item: "FaceCrops") -> int:
        """Return the number of rows."""
        return len(item.valid)

    def inputs(self, items: "Sequence[FaceCrops]", device: "torch.device") -> "Sequence[FaceCrops]":  # noqa: ARG002
        """Return the clips: a backbone moves the crops of valid rows only."""
        return items

    def stated_seconds(self, source: Source, options: DecodeOptions) -> float | None:  # noqa: ARG002
        """See `Modality`."""
        from extract.faces.reading import header_seconds

        return header_seconds(source.path)


FACE: Modality = Face()
