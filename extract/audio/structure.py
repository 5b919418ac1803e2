"""Distinguish a gap on a container's clock from a hole in the file, by reading the file's structure.

FFmpeg skips damaged parts and resumes behind them, which looks like packets that never existed. In Matroska and Ogg the
structure shows what is missing. Formats that count samples have no gaps. In other formats the two cannot be told apart.
"""

import zlib
from pathlib import Path
from typing import BinaryIO

# IDs of Matroska elements (RFC 9559): header and segment, parts of a segment, parts of a cluster, void and checksum.
_SEGMENT, _CLUSTER, _GROUP = 0x18538067, 0x1F43B675, 0xA0
_TOP = frozenset((0x1A45DFA3, _SEGMENT))
_IN_SEGMENT = frozenset((0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367))
_IN_CLUSTER = frozenset((0xE7, 0xA7, 0xAB, 0xA3, _GROUP, 0x5854))
_ANYWHERE = frozenset((0xEC, 0xBF))
# Length of a live cluster: all bits set.
_UNKNOWN_LENGTHS = frozenset((1 << 7 * width) - 1 for width in range(1, 9))
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# Formats whose timestamps count samples, so that a gap is a hole.
_GAPLESS = frozenset({"ape", "flac", "mpc", "mpc8", "shn", "tak", "tta", "wv"})


def hole(path: Path, kind: str, end: int | None) -> str:
    """Return the error in the structure of a file that has a gap in its sound, or "".

    Args:
        path: of the file.
        kind: FFmpeg's name of the format.
        end: byte position up to which the file was read; None is its end.
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
    """Return the offset of the first element that may not be there, or that extends beyond its cluster."""
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
    """Read an integer of variable length; None where there is none."""
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
    """Return the offset of the first page that does not follow the previous one, or whose checksum is wrong."""
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
        if number != numbers.get(serial, number - 1) + 1 and not header[5] & 2:  # a chained stream starts again
            return at
        numbers[serial] = number
    return None


def _ogg_crc(page: bytes) -> int:
    """Compute CRC-32 in the other bit order than zlib."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
