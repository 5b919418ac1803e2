"""What the structure of a media file says: how long it is, whether it is whole, and sizes that its writer left out.

A file is truncated (an interrupted download or copy) if its sound ends before the length or the end stated in its
headers (on the container's clock), or in the middle of a frame. Placeholders of pipes and recorders state nothing. A
FLAC file whose last frame is whole is complete.

FFmpeg decodes the rest of a truncated file without an error, which would cache half a clip as if it were whole. Only
stated lengths are used; an estimate from the bit rate is not reliable.

FFmpeg also skips damaged parts and resumes behind them, which looks like packets that never existed: like a gap on the
container's clock. In Matroska and Ogg the structure shows what is missing. Formats that count samples have no gaps. In
other formats the two cannot be told apart.

FFmpeg cannot read an RF64, W64 or AIFF file whose header holds placeholders for sizes, because its writer did not know
the length (a pipe, or a recorder that was stopped). `mended` fills them in while the file is read: the sound ends with
the file.
"""

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av

TOLERANCE_SECONDS = 0.25
"""Encoder delay and padding make decoded and stated lengths differ by a few frames (AAC, MP3: 0.1 s)."""
EXACT_KINDS = ("aiff", "au", "caf", "flac", "tta", "w64", "wav")
"""Formats whose headers state the exact number of samples."""
_STATING_KINDS = (*EXACT_KINDS, "ape", "ogg", "tak", "wv")
# Bytes behind the last packet in which the start of another file is searched.
_JOIN_BYTES = 1 << 20
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
# Compression types of AIFF-C that are uncompressed: the header states the bytes per sample.
_AIFF_PLAIN = (b"NONE", b"sowt", b"twos", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32")


class _Chunks(NamedTuple):
    """A format made of chunks: bytes before the first, layout of a chunk's head, name of the chunk with the sound."""

    start: int
    head: struct.Struct
    name: bytes
    head_counts: bool = False
    align: int = 2


_LAYOUTS = {
    "wav": _Chunks(12, struct.Struct("<4sI"), b"data"),
    "aiff": _Chunks(12, struct.Struct(">4sI"), b"SSND"),
    "caf": _Chunks(8, struct.Struct(">4sq"), b"data", align=1),
    "w64": _Chunks(40, struct.Struct("<16sq"), b"data", head_counts=True, align=8),
}


def stated_seconds(
    container: av.container.InputContainer, stream: av.AudioStream | av.VideoStream, path: Path, zero: float
) -> float | None:
    """Return the time at which a track ends as the file's headers state it, or None.

    Args:
        container: opened for reading.
        stream: the track.
        path: of the file.
        zero: see `extract.audio.track.clock_zero`.

    Returns:
        Seconds from time 0; None where the headers only allow an estimate, or hold a placeholder.
    """
    kind = container.format.name
    if kind == "mp3" and isinstance(stream, av.AudioStream):
        return _mp3_seconds(path, stream.rate)
    if "matroska" in kind:
        written = re.fullmatch(r"(\d+):(\d+):([\d.]+)\0*", stream.metadata.get("DURATION", ""))
        if written:
            hours, minutes, seconds = written.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - zero
        alone = len(container.streams) == 1  # else the length may be that of the video
        return container.duration / 1e6 - zero if alone and container.duration else None
    if kind == "aiff" and is_placeholder(sound_chunk(path, "aiff")[1]):
        return None  # so is the number of samples
    if (kind in _STATING_KINDS or "mp4" in kind) and stream.duration and stream.time_base:
        is_end = kind == "ogg" and stream.codec_context.name == "opus"  # FFmpeg: the last granule, not the length
        return float((stream.duration + (0 if is_end else stream.start_time or 0)) * stream.time_base) - zero
    return None


def is_cut_off(path: Path, kind: str) -> bool:
    """Whether a file ends before its structure does (FFmpeg may derive its lengths from the file size)."""
    size = path.stat().st_size
    if kind == "ogg":
        return _ogg_is_cut_off(path, size)
    if kind not in _LAYOUTS:
        return False
    start, stated = sound_chunk(path, kind)
    return not is_placeholder(stated) and start + stated > size


def is_whole_flac_frame(frame: bytes) -> bool:
    """Whether the last packet of a FLAC file is a frame with the right CRC-16; a file cut off ends within a frame."""
    crc = 0
    for byte in frame:
        crc ^= byte << 8
        for _ in range(8):  # polynomial 0x8005, most significant bit first (RFC 9639, 9.3)
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
    return len(frame) > 2 and crc == 0


def second_file(path: Path, kind: str, end: int | None) -> int | None:
    """Return the byte at which another file of the same kind begins behind the sound, or None.

    FFmpeg reads only the first of two joined files in these formats.

    Args:
        path: of the file.
        kind: FFmpeg's name of the format.
        end: byte position behind the last packet, or None.
    """
    if end is None or end + 64 > path.stat().st_size:
        return None
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(end)
        tail = file.read(_JOIN_BYTES)
    pattern = {
        "aiff": rb"FORM....AIF[FC]",
        "asf": re.escape(head),
        "au": re.escape(head[:8]),
        "caf": re.escape(head[:8]),
        "flv": rb"FLV\x01.\0\0\0\x09\0\0\0\0",
        "mov,mp4,m4a,3gp,3g2,mj2": re.escape(head[:12]) if head[4:8] == b"ftyp" else None,
        "tta": rb"TTA1\x01\0",
        "w64": re.escape(head),
        "wav": rb"R(?:IFF|F64)....WAVE",
        "wv": rb"wvpk",
    }.get(kind)
    found = re.search(pattern, tail, re.DOTALL) if pattern else None
    return end + found.start() if found else None


def is_placeholder(size: int) -> bool:
    """Whether a size in a header stands for an unknown size.

    That is 0, -1 (CAF, W64), or a value near the largest of the field, in some writers reduced by the header's size:
    0x7FFFF000 and 0x7FFFFFFF (espeak-ng, SoX), 0x80000000 (arecord), 0xFFFFFFFF (FFmpeg), 0x7F000000 (SoX, AIFF).
    """
    near = 0x10000
    return (
        size <= 0
        or 0x7F000000 <= size <= 0x7F000000 + near
        or 0x80000000 - near <= size <= 0x80000000 + near
        or 0xFFFFFFFF - near <= size <= 0xFFFFFFFF
        or size >= 1 << 62
    )


def sound_chunk(path: Path, kind: str) -> tuple[int, int]:
    """Return the offset of the chunk with the sound, and its stated size; (0, 0) where there is no such chunk."""
    layout, wide = _LAYOUTS[kind], 0
    with path.open("rb") as file:
        if kind == "wav" and file.read(4) not in (b"RIFF", b"RF64", b"BW64"):
            return 0, 0  # big-endian
        file.seek(layout.start)
        while len(header := file.read(layout.head.size)) == layout.head.size:
            name, size = layout.head.unpack(header)
            size -= layout.head.size if layout.head_counts else 0
            body = file.tell()
            if name[:4] == layout.name:
                return body, wide if size == 0xFFFFFFFF and wide else size
            if size < 0:
                break
            if name == b"ds64":
                wide = int.from_bytes(file.read(16)[8:], "little")
            file.seek(body)
            file.seek(size + -size % layout.align, os.SEEK_CUR)
    return 0, 0


def _ogg_is_cut_off(path: Path, size: int) -> bool:
    """Whether the last Ogg page ends behind the end of the file by its segment table."""
    start = max(0, size - 2 * 65307)  # a page has at most 65,307 bytes (RFC 3533)
    with path.open("rb") as file:
        file.seek(start)
        tail = file.read()
    at = tail.rfind(b"OggS\0")
    page = tail[at:].ljust(27, b"\xff")  # a page without a whole head lacks its segments too
    segments = page[27 : 27 + page[26]]
    return at >= 0 and (len(segments) < page[26] or start + at + 27 + len(segments) + sum(segments) > size)


def _mp3_seconds(path: Path, rate: int) -> float | None:
    """Return the length in the Xing/Info header of the first MPEG frame, or None where there is no such header."""
    with path.open("rb") as file:
        head = file.read(10)
        tag_bytes = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
        file.seek(10 + tag_bytes if head[:3] == b"ID3" else 0)
        frame = file.read(4096)
    tag = max(frame[:256].find(b"Xing"), frame[:256].find(b"Info"))
    if tag < 0 or len(frame) < tag + 12 or not frame[tag + 7] & 1:
        return None
    frames = int.from_bytes(frame[tag + 8 : tag + 12], "big")
    return frames * (1152 if rate >= 32000 else 576) / rate  # MPEG-1 against MPEG-2 and 2.5


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
