"""Open WAV, W64 and AIFF files whose writer did not know the length (a pipe, or a recorder that was stopped).

FFmpeg cannot read an RF64, W64 or AIFF file whose header holds placeholders for sizes. The sizes are filled in while
the file is read: the sound ends with the file.
"""

import io
import struct
from pathlib import Path

from extract.audio.truncation import is_placeholder, sound_chunk

# Compression types of AIFF-C that are uncompressed: the header states the bytes per sample.
_AIFF_PLAIN = (b"NONE", b"sowt", b"twos", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32")


def mended(path: Path) -> io.RawIOBase | None:
    """Return the file with the sizes in its header filled in, or None where the file needs no change."""
    with path.open("rb") as file:
        magic = file.read(12)
    kind = {b"riff": "w64", b"FORM": "aiff", b"RF64": "wav", b"BW64": "wav"}.get(magic[:4])
    if kind is None or (kind == "aiff" and magic[8:] not in (b"AIFF", b"AIFC")):
        return None
    start, stated = sound_chunk(path, kind)
    if not start or not is_placeholder(stated):
        return None
    with path.open("rb") as file:
        header, following = bytearray(file.read(start)), file.read(4)
    size, ds64 = path.stat().st_size, header.find(b"ds64")
    if following == magic[:4] or (kind == "wav" and ds64 < 0):
        return None  # a second header, as libsndfile writes into a pipe; or no place for the size
    if kind == "w64":
        struct.pack_into("<q", header, 16, size)
        struct.pack_into("<q", header, start - 8, size - start + 24)
    elif kind == "wav":
        struct.pack_into("<I", header, start - 4, 0xFFFFFFFF)
        struct.pack_into("<QQ", header, ds64 + 8, size - 8, size - start)
    elif not _mend_aiff(header, size - start):
        return None
    return _Mended(path, bytes(header))


def _mend_aiff(header: bytearray, left: int) -> bool:
    """Fill in the sizes of an AIFF file with `left` bytes behind the sound's header; False for an unknown kind."""
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


class _Mended(io.FileIO):
    """A file whose first bytes are replaced."""

    def __init__(self, path: Path, header: bytes) -> None:
        super().__init__(path)
        self._header = header

    def read(self, count: int | None = -1, /) -> bytes:
        at = self.tell()
        found = super().read(count) or b""
        head = self._header[at : at + len(found)]
        return head + found[len(head) :]
