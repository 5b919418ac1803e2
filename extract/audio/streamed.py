"""Open WAV, W64 and AIFF whose writer did not know the length (a pipe, a recorder that was stopped) as FFmpeg cannot.

FFmpeg reads nothing of an RF64, W64 or AIFF whose header holds placeholders. The header is mended on the way: the sound
ends with the file.
"""

import io
import struct
from pathlib import Path

from extract.audio.truncation import is_placeholder, sound_chunk

_AIFF_PLAIN = (b"NONE", b"sowt", b"twos", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32")
"""Compressions of AIFF-C that are none: bytes per sample follow from the header."""


def mended(path: Path) -> io.RawIOBase | None:
    """Return the file with the sizes in its header filled in, or None where it is read as it is."""
    with path.open("rb") as file:
        magic = file.read(12)
    kind = {b"riff": "w64", b"FORM": "aiff", b"RF64": "wav", b"BW64": "wav"}.get(magic[:4])
    if kind is None or (kind == "aiff" and magic[8:] not in (b"AIFF", b"AIFC")):
        return None
    start, stated = sound_chunk(path, kind)
    if not start or not is_placeholder(stated):
        return None
    with path.open("rb") as file:
        header = bytearray(file.read(start))
        if file.read(4) == magic[:4]:  # libsndfile into a pipe: a second header, where the first should have been
            return None
    size = path.stat().st_size
    if kind == "w64":
        struct.pack_into("<q", header, 16, size)
        struct.pack_into("<q", header, start - 8, size - start + 24)
    elif kind == "aiff":
        if not _mend_aiff(header, size - start):
            return None
    else:
        struct.pack_into("<I", header, start - 4, 0xFFFFFFFF)
        ds64 = header.find(b"ds64")
        if ds64 < 0:
            return None
        struct.pack_into("<QQ", header, ds64 + 8, size - 8, size - start)
    return _Mended(path, bytes(header))


def _mend_aiff(header: bytearray, left: int) -> bool:
    """Fill in the sizes of an AIFF of which `left` bytes follow the header of its sound; False for an unknown kind."""
    comm = header.find(b"COMM")
    if comm < 0 or (header[8:12] == b"AIFC" and header[comm + 26 : comm + 30] not in _AIFF_PLAIN):
        return False
    channels, bits = struct.unpack_from(">h", header, comm + 8)[0], struct.unpack_from(">h", header, comm + 14)[0]
    frame_bytes = channels * ((bits + 7) // 8)
    if frame_bytes <= 0:
        return False
    frames = (left - 8) // frame_bytes
    struct.pack_into(">I", header, comm + 10, frames)
    struct.pack_into(">I", header, len(header) - 4, 8 + frames * frame_bytes)
    struct.pack_into(">I", header, 4, len(header) + frames * frame_bytes)
    return True


class _Mended(io.RawIOBase):
    """A file of which the first bytes are others."""

    def __init__(self, path: Path, header: bytes) -> None:
        self._file, self._header = path.open("rb"), header
        self._size = path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        at = self._file.tell()
        found = self._file.read(count)
        head = self._header[at : at + len(found)]
        return head + found[len(head) :]

    def close(self) -> None:
        self._file.close()
        super().close()
