"""Tell a file that was cut off (an interrupted download or copy) from one that simply ends.

FFmpeg decodes what is left of a truncated file without an error, which would cache half a clip as if it were whole.
Lengths are trusted only where a header states them; an estimate from the bit rate is not.
"""

import os
import re
import struct
from pathlib import Path

import av.container

TOLERANCE_SECONDS = 0.25
"""Encoder delay and padding make decoded and stated lengths differ by up to a few frames (AAC, MP3: 0.1 s)."""
EXACT_KINDS = ("aiff", "flac", "wav")
"""Formats whose headers state the very number of samples."""
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""RIFF sizes that streaming writers leave in place because they did not know the length."""


def stated_seconds(container: av.container.InputContainer, stream: av.AudioStream, path: Path) -> float | None:
    """Length of the audio track as the file's own headers state it, or None where they only allow an estimate."""
    kind = container.format.name
    if kind == "mp3":
        return _mp3_seconds(path, stream.rate)
    if "matroska" in kind:
        written = re.fullmatch(r"(\d+):(\d+):([\d.]+)\0*", stream.metadata.get("DURATION", ""))
        if written:
            hours, minutes, seconds = written.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        alone = len(container.streams) == 1  # else the stated length may be that of the picture
        return container.duration / 1e6 if alone and container.duration else None
    known = kind in ("wav", "flac", "ogg", "aiff") or "mp4" in kind
    if known and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return None


def is_cut_off(path: Path, kind: str) -> bool:
    """Whether a WAV or Ogg file ends before its own structure does (their stated lengths follow the file size)."""
    if kind == "wav":
        return _riff_data_end(path) > path.stat().st_size
    return kind == "ogg" and _ogg_last_page_end(path) > path.stat().st_size


def _riff_data_end(path: Path) -> int:
    """Offset at which the `data` chunk ends according to its header; 0 where it is not stated."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                return 0 if size in _UNKNOWN_SIZES else file.tell() + size
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0


def _ogg_last_page_end(path: Path) -> int:
    """Offset at which the last Ogg page ends according to its segment table; 0 where none is found."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2 * 65307))  # a page has at most 65,307 bytes (RFC 3533)
        tail, start = file.read(), max(0, size - 2 * 65307)
    at = tail.rfind(b"OggS\0")
    if at < 0 or len(tail) < at + 27:
        return size + 1 if at >= 0 else 0
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    if len(segments) < tail[at + 26]:
        return size + 1
    return start + at + 27 + len(segments) + sum(segments)


def _mp3_seconds(path: Path, rate: int) -> float | None:
    """Length from the Xing/Info header that encoders put into the first MPEG frame, or None without one."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            file.seek(10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        else:
            file.seek(0)
        frame = file.read(4096)
    tag = max(frame[:256].find(b"Xing"), frame[:256].find(b"Info"))
    if tag < 0 or len(frame) < tag + 12 or not frame[tag + 7] & 1:
        return None
    frames = int.from_bytes(frame[tag + 8 : tag + 12], "big")
    return frames * (1152 if rate >= 32000 else 576) / rate  # MPEG-1 against MPEG-2 and 2.5
