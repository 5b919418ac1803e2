"""Outputs of a backbone's frozen stages, computed once per clip and kept on disk.

Frozen stages compute the same in every epoch. Their output for each clip is kept in a folder that all processes of a
run share, under a hash of the clip's samples. A run that was killed resumes with what is there, to the byte, since a
clip's first batch is the same in both.
"""

import contextlib
import hashlib
import secrets
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

_SHAPE = struct.Struct("<qq")
"""A file is the shape (frames, width), the CRC-32C of shape and numbers, and the numbers as float32."""
FREE_SHARE = 2
"""The disk must have this many times the size of the outputs free."""


class FrozenOutputs:
    """A folder of (frames, width) float32 by clip.

    Args:
        folder: created where missing; what it holds is used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has_room(self, frames: int, width: int) -> bool:
        """Whether the disk has room for outputs with this total of frames, including those already there."""
        there = sum(path.stat().st_size for path in self._folder.glob("*.bin"))
        return shutil.disk_usage(self._folder).free + there > FREE_SHARE * 4 * frames * width

    def get(self, clip: bytes) -> Tensor | None:
        """Return (frames, width) of a clip by its hash, or None where it is missing or damaged."""
        with contextlib.suppress(FileNotFoundError), self._path(clip).open("rb", buffering=0) as file:
            shape, crc, content = file.read(_SHAPE.size), file.read(4), file.read()
            if _checksum(shape, content) == crc:  # it is not where the machine lost power before the disk had it
                return torch.frombuffer(bytearray(content), dtype=torch.float32).view(_SHAPE.unpack(shape))
        return None

    def put(self, clip: bytes, output: Tensor) -> None:
        """Keep the output of a clip, unless it is there.

        Raises:
            OSError: the disk is full, or another process has removed the folder for that reason.
        """
        if self.get(clip) is not None:
            return
        array = np.ascontiguousarray(output.detach().cpu().numpy(), dtype=np.float32)
        shape, content = _SHAPE.pack(*array.shape), array.tobytes()
        temporary = self._path(clip).with_suffix(f".{secrets.token_hex(4)}")
        with temporary.open("wb") as file:
            file.write(shape + _checksum(shape, content))
            file.write(content)
        temporary.replace(self._path(clip))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, clip: bytes) -> Path:
        return self._folder / f"{clip.hex()}.bin"


def hash_of(waveform: Tensor) -> bytes:
    """Return what tells one clip from another, wherever it lies: a hash of its samples."""
    return hashlib.blake2b(waveform.contiguous().numpy().tobytes(), digest_size=16).digest()


def _checksum(shape: bytes, content: bytes) -> bytes:
    crc: int = google_crc32c.extend(google_crc32c.value(shape), content)
    return crc.to_bytes(4, "little")
