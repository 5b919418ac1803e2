"""Crops of the faces of many clips in one file: found and cut out once, read by every process and every run.

`emi-crops-….bin` holds the pixels of the crops, uint8 RGB, one after another and each in its own size, as extraction
gets them: 38 kB for an aligned crop. `emi-crops-….bin.rows` says of every row of every clip where its crop begins, how
large it is and when the row is; a row without a face has a height of 0. `emi-crops.json` gives the place of each clip.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray

from cache.paths import StrPath
from cache.system.machine import available_cores
from emi.finetuning import decode_once
from emi.finetuning.decode_once import Decoded, Layout, OnProgress, Request
from extract.errors import MediaError
from extract.faces.modality import DECODER, FACE
from extract.faces.package import WEIGHTS_SHA256
from extract.faces.reading import FaceCrops
from extract.settings import DecodeOptions
from extract.sources import Source
from train_head.data.streams import Stream

PIXELS, INDEX, LOCK = "emi-crops-{}.bin", "emi-crops.json", "emi-crops.lock"
ROWS = ".rows"
LAYOUT = Layout(modality=FACE, content=PIXELS, index=INDEX, lock=LOCK, ahead=available_cores() + 1, processes_from=8)
"""A clip that is held has up to 68 MB of crops."""
ROW = np.dtype([("at", "<i8"), ("height", "<i4"), ("width", "<i4"), ("start", "<f4"), ("end", "<f4")])


@dataclass(frozen=True, kw_only=True)
class Crops(Decoded):
    """The opened crops of clips, of at least one row each; checksums are of pixels, and of the size and times of rows.

    Attributes:
        pixels: all bytes, a memory map.
        rows: (total rows,) of `ROW`.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[Any]

    def stream(self, name: str, clips: Sequence[str], hop: float | None) -> Stream:
        """Return the rows of some clips, which hold nothing: `image` gives the crop of each.

        Args:
            name: of the stream.
            clips: their ids.
            hop: seconds from one row to the next; None where rows have times.
        """
        starts = torch.tensor([self.starts[clip] for clip in clips], dtype=torch.int64)
        lengths = torch.tensor([self.lengths[clip] for clip in clips], dtype=torch.int64)
        times = None
        if hop is None:
            times = torch.from_numpy(np.stack([self.rows["start"], self.rows["end"]], axis=1))
        valid = torch.from_numpy(self.rows["height"] > 0)
        return Stream(name, torch.empty(len(self.rows), 0), starts, lengths, hop, times, valid)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return the crop of a valid row, (height, width, 3) uint8."""
        at, height, width = (int(self.rows[row][name]) for name in ("at", "height", "width"))
        return np.array(self.pixels[at : at + 3 * height * width]).reshape(height, width, 3)


def request_of(sources: Sequence[Source], max_seconds: float | None, options: DecodeOptions) -> Request:
    """Return which crops are wanted."""
    recipe = {
        "version": 1,
        "decoder": DECODER,
        "detector_sha256": WEIGHTS_SHA256,
        **options.faces.fingerprint(),
        "allow_truncated": options.allow_truncated,
        "max_seconds": max_seconds,
    }
    return Request(sources=sources, max_seconds=max_seconds, options=options, recipe=recipe)


def open_crops(folder: StrPath, request: Request) -> Crops | None:
    """Open the crops of clips; None if there are none, or a file has changed since."""
    found = decode_once.find_decoded(folder, LAYOUT, request)
    if found is None:
        return None
    try:
        rows = np.load(found.content.with_name(found.content.name + ROWS))
        empty = not found.content.stat().st_size
        pixels = np.zeros(0, np.uint8) if empty else np.memmap(found.content, np.uint8, "r")
    except (OSError, ValueError):
        return None
    return Crops(pixels=pixels, rows=rows, **found.decoded("rows"))


def decode_crops(folder: StrPath, request: Request, on_progress: OnProgress | None = None) -> None:
    """Find and cut out the faces of clips; see `emi.finetuning.decode_once.decode_once`."""

    def is_whole() -> bool:
        found = open_crops(folder, request)
        return found is not None and not found.failures

    def writer(path: Path) -> _CropFile:
        return _CropFile(path, request.options)

    decode_once.decode_once(folder, LAYOUT, request, is_whole, writer, on_progress)


class _CropFile:
    """A growing file of pixels, with the rows beside it at the end; see `Writer`."""

    def __init__(self, path: Path, options: DecodeOptions) -> None:
        self._path, self._options = path, options
        self._rows: list[NDArray[Any]] = []
        self._total, self._at = 0, 0

    def append(self, item: FaceCrops, source: Source) -> dict[str, Any]:
        """Write a clip."""
        rows = np.zeros(len(item.valid), ROW)
        if item.times is not None:
            rows["start"], rows["end"] = item.times.T
        start, crc = self._at, 0
        try:
            for row, image in enumerate(self._images(item, source)):
                if item.valid[row]:
                    content = image.tobytes()
                    rows[row] = (self._at, *image.shape[:2], rows["start"][row], rows["end"][row])
                    self._file.write(content)
                    self._at += len(content)
                    crc = google_crc32c.extend(crc, content)
        except MediaError:
            self._file.seek(start)
            self._file.truncate()
            self._at = start
            raise
        for name in ("height", "width", "start", "end"):
            crc = google_crc32c.extend(crc, rows[name].tobytes())
        entry = {"start": self._total, "rows": len(rows), "crc32c": crc}
        self._rows.append(rows)
        self._total += len(rows)
        return entry

    def _images(self, item: FaceCrops, source: Source) -> Iterator[NDArray[np.uint8]]:
        """Yield the image of each row, of a long clip in blocks."""
        if not item.long:
            yield from item.images
            return
        for block in FACE.record(item, source, self._options):
            yield from block

    def __enter__(self) -> "_CropFile":
        self._file: BinaryIO = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._path.with_name(self._path.name.removesuffix(".tmp") + ROWS).open("wb") as file:
            np.save(file, np.concatenate([np.zeros(0, ROW), *self._rows]))
            file.flush()
            os.fsync(file.fileno())
