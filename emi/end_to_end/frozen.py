"""What the frozen bottom of a backbone gives, computed once for each clip and kept on disk.

Frozen stages compute the same of a clip in every epoch. Their output is written behind the others' into one file per
process, with a checksum, as the clips come by for the first time; a run that was killed goes on with what is there, to
the byte, since a clip's first batch is the same in both.
"""

import hashlib
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

_HEADER = struct.Struct("<16sqqI")
"""Hash of the clip's samples, frames, width, CRC-32C of the bytes that follow."""
FREE_SHARE = 2
"""The disk must have so many times the room that the file will take."""


class FrozenOutputs:
    """A growing file of (frames, width) float32 by clip.

    Args:
        path: continued where it is there; a torn end is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[bytes, tuple[int, int, int, int]] = {}
        path.touch()
        self._end = self._read_headers()
        os.truncate(path, self._end)

    def get(self, clip: bytes) -> Tensor | None:
        """(frames, width) of a clip by its hash, or None where it is not there or not whole."""
        if clip not in self._places:
            return None
        at, frames, width, crc = self._places[clip]
        with self._path.open("rb") as file:
            file.seek(at)
            content = file.read(4 * frames * width)
        if google_crc32c.value(content) != crc:  # the machine lost power before the disk had it
            del self._places[clip]
            return None
        return torch.frombuffer(bytearray(content), dtype=torch.float32).view(frames, width)

    def put(self, clip: bytes, output: Tensor) -> None:
        """Keep the output of a clip, where it is not there.

        Raises:
            OSError: the disk is full; what is there is whole.
        """
        if clip in self._places:
            return
        array = np.ascontiguousarray(output.detach().cpu().numpy(), dtype=np.float32)
        content = array.tobytes()
        crc = google_crc32c.value(content)
        try:
            with self._path.open("ab") as file:
                file.write(_HEADER.pack(clip, *array.shape, crc) + content)
        except OSError:
            os.truncate(self._path, self._end)
            raise
        self._places[clip] = (self._end + _HEADER.size, *array.shape, crc)
        self._end += _HEADER.size + len(content)

    def _read_headers(self) -> int:
        """Fill the index; where the last whole entry ends."""
        size, end = self._path.stat().st_size, 0
        with self._path.open("rb") as file:
            while end + _HEADER.size <= size:
                file.seek(end)
                clip, frames, width, crc = _HEADER.unpack(file.read(_HEADER.size))
                at, length = end + _HEADER.size, 4 * frames * width
                if frames <= 0 or width <= 0 or at + length > size:
                    break
                self._places[clip] = (at, frames, width, crc)
                end = at + length
        return end


def hash_of(waveform: Tensor) -> bytes:
    """What tells one clip from another, wherever it lies: a hash of its samples."""
    return hashlib.blake2b(waveform.contiguous().numpy().tobytes(), digest_size=16).digest()


def fits_on_disk(path: Path, frames: Sequence[int], width: int, processes: int) -> bool:
    """Whether the outputs of clips with so many frames leave room on a file's disk, what it holds counted in."""
    there = path.stat().st_size if path.is_file() else 0
    return shutil.disk_usage(path.parent).free + there > FREE_SHARE * 4 * sum(frames) * width * processes
