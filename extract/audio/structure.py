"""Tell a gap on a container's clock from a hole in the file: walk the file's own structure as far as it was read.

FFmpeg passes over what is damaged and resumes behind it, which looks like packets that never were. Matroska and Ogg say
what follows what; formats that count samples have no gaps. In the others the two cannot be told apart.
"""

import zlib
from pathlib import Path
from typing import BinaryIO

_SEGMENT, _CLUSTER, _GROUP = 0x18538067, 0x1F43B675, 0xA0
_TOP = frozenset((0x1A45DFA3, _SEGMENT))
_IN_SEGMENT = frozenset((0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367))
_IN_CLUSTER = frozenset((0xE7, 0xA7, 0xAB, 0xA3, _GROUP, 0x5854))
_ANYWHERE = frozenset((0xEC, 0xBF))
"""IDs of elements (RFC 9559): head and segment; their parts; those of a cluster; void and checksum."""
_UNKNOWN_LENGTHS = frozenset((1 << 7 * width) - 1 for width in range(1, 9))
"""Of live clusters: all bits set."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_GAPLESS = frozenset({"ape", "flac", "mpc", "mpc8", "shn", "tak", "tta", "wv"})
"""Formats whose times are counted samples, so that a gap is a hole."""


def hole(path: Path, kind: str, end: int | None) -> str:
    """Return what is wrong with the structure of a file that has a gap in its sound, or "".

    Args:
        path: of the file.
        kind: FFmpeg's name of the format.
        end: byte position up to which it was read; None is its end.
    """
    if kind in _GAPLESS:
        return "its frames do not follow each other"
    if kind not in ("ogg", "matroska,webm"):
        return ""
    with path.open("rb") as file:
        size = path.stat().st_size if end is None else min(end, path.stat().st_size)
        at = _ogg_break(file, size) if kind == "ogg" else _matroska_break(file, size)
    return "" if at is None else f"its structure is broken at byte {at}"


def _matroska_break(file: BinaryIO, size: int) -> int | None:
    """Offset of the first element that cannot be where it is, or that reaches beyond its cluster."""
    cluster_end: int | None = 0
    while (at := file.tell()) < size:
        identity, length = _vint(file, keep_marker=True), _vint(file)
        if identity is None or length is None:
            return at
        within = cluster_end is None or at < cluster_end
        beside = cluster_end is None or not within
        allowed = (_IN_CLUSTER if within else frozenset()) | (_TOP | _IN_SEGMENT if beside else frozenset())
        body = file.tell()
        if identity not in allowed | _ANYWHERE or (cluster_end and within and body + length > cluster_end):
            return at
        if identity == _CLUSTER:
            cluster_end = None if length in _UNKNOWN_LENGTHS else body + length
        elif identity != _SEGMENT:
            file.seek(length, 1)
    return None


def _vint(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """A number of variable length; None where there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) < width - 1:
        return None
    value = first[0] if keep_marker else first[0] & (0xFF >> width)
    return value << 8 * (width - 1) | int.from_bytes(rest, "big")


def _ogg_break(file: BinaryIO, size: int) -> int | None:
    """Offset of the first page that does not follow the one before, or does not match its checksum."""
    numbers: dict[bytes, int] = {}
    while (at := file.tell()) < size:
        header = file.read(27)
        if len(header) < 27 or header[:4] != b"OggS":
            return at
        lengths = file.read(header[26])
        page = header[:22] + bytes(4) + header[26:] + lengths + file.read(sum(lengths))
        if _ogg_crc(page) != int.from_bytes(header[22:26], "little"):
            return at
        serial, number = header[14:18], int.from_bytes(header[18:22], "little")
        if number != numbers.get(serial, number - 1) + 1 and not header[5] & 2:  # a chained stream may start anew
            return at
        numbers[serial] = number
    return None


def _ogg_crc(page: bytes) -> int:
    """CRC-32 with the bits the other way round than zlib's."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
