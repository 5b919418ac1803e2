"""What the frozen bottom of a backbone gives, computed once for each clip and kept on disk.

Frozen stages compute the same of a clip in every epoch. Their output is written behind the others' into one file per
process, with a checksum, as the clips come by for the first time, and each process reads all files; a run that was
killed goes on with what is there, to the byte, since a clip's first batch is the same in both.
"""

import contextlib
import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

_HEADER = struct.Struct("<16sqqI")
"""Hash of the clip's samples, frames, width, CRC-32C of the bytes that follow."""
FREE_SHARE = 2
"""The disk must have this many times the size of the file free."""


class FrozenOutputs:
    """A growing file of (frames, width) float32 by clip, and what other processes write into theirs.

    Args:
        path: continued where it is there; a torn end is cut off.
        others: files of the other processes, which need not be there yet.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        path.touch()
        self._mine, self._others = _Entries(path), [_Entries(other) for other in others if other != path]
        self._mine.read_on()
        os.truncate(path, self._mine.end)

    def get(self, clip: bytes) -> Tensor | None:
        """(frames, width) of a clip by its hash, or None where it is not there or not whole."""
        found = self._mine.get(clip)
        for other in self._others:
            if found is None:
                other.read_on()
                found = other.get(clip)
        return found

    def put(self, clip: bytes, output: Tensor) -> None:
        """Keep the output of a clip, where it is not there.

        Raises:
            OSError: the disk is full; what is there is whole.
        """
        if self.get(clip) is not None:
            return
        array = np.ascontiguousarray(output.detach().cpu().numpy(), dtype=np.float32)
        content = array.tobytes()
        try:
            with self._mine.path.open("ab") as file:
                file.write(_HEADER.pack(clip, *array.shape, google_crc32c.value(content)) + content)
        except OSError:
            os.truncate(self._mine.path, self._mine.end)
            raise
        self._mine.read_on()


class _Entries:
    """What lies where in a file that grows, perhaps by another process, which deletes it where its disk is full.

    Args:
        path: of the file, which may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self._places: dict[bytes, tuple[int, int, int, int]] = {}

    def read_on(self) -> None:
        """Take in the headers of what was written since, up to the last entry that is there whole."""
        with contextlib.suppress(FileNotFoundError):
            size = self.path.stat().st_size
            if size != self.end:
                self._read_headers(size)

    def _read_headers(self, size: int) -> None:
        with self.path.open("rb") as file:
            while self.end + _HEADER.size <= size:
                file.seek(self.end)
                header = file.read(_HEADER.size)
                if len(header) < _HEADER.size:  # a torn end was cut off just now
                    break
                clip, frames, width, crc = _HEADER.unpack(header)
                at, length = self.end + _HEADER.size, 4 * frames * width
                if frames <= 0 or width <= 0 or at + length > size:
                    break
                self._places[clip] = (at, frames, width, crc)
                self.end = at + length

    def get(self, clip: bytes) -> Tensor | None:
        """As of `FrozenOutputs`, from this file."""
        if clip not in self._places:
            return None
        at, frames, width, crc = self._places[clip]
        content = b""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(at)
            content = file.read(4 * frames * width)
        if google_crc32c.value(content) != crc:  # it is gone, or the machine lost power before the disk had it
            del self._places[clip]
            return None
        return torch.frombuffer(bytearray(content), dtype=torch.float32).view(frames, width)


def hash_of(waveform: Tensor) -> bytes:
    """What tells one clip from another, wherever it lies: a hash of its samples."""
    return hashlib.blake2b(waveform.contiguous().numpy().tobytes(), digest_size=16).digest()


def fits_on_disk(paths: Sequence[Path], frames: Sequence[int], width: int) -> bool:
    """Whether the outputs of clips with so many frames leave room on the files' disk, what they hold counted in."""
    there = sum(path.stat().st_size for path in paths if path.is_file())
    return shutil.disk_usage(paths[0].parent).free + there > FREE_SHARE * 4 * sum(frames) * width
