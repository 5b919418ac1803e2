"""Videos whose pictures carry their own time in milliseconds, in binary: two rows of eight blocks, black and white."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 16


def clock_picture(milliseconds: int, height: int = 96, width: int = 128) -> np.ndarray:
    """(height, width, 3) uint8: bits from the top left, most significant first; a grey frame tells which way is up."""
    bits = np.array([milliseconds >> k & 1 for k in reversed(range(BITS))], np.uint8).reshape(2, 8) * 255
    rows, columns = np.arange(height) * 4 // height - 1, np.arange(width) * 10 // width - 1
    picture = np.full((height, width), 128, np.uint8)
    inside = np.ix_((rows >= 0) & (rows < 2), (columns >= 0) & (columns < 8))
    picture[inside] = bits[np.ix_(rows[(rows >= 0) & (rows < 2)], columns[(columns >= 0) & (columns < 8)])]
    return np.repeat(picture[:, :, None], 3, axis=2)


def read_clock(picture: np.ndarray) -> float:
    """The time in seconds that an upright picture of any size shows."""
    height, width = picture.shape[:2]
    y, x = ((np.arange(2) + 1.5) * height / 4).astype(int), ((np.arange(8) + 1.5) * width / 10).astype(int)
    bits = picture[np.ix_(y, x)].mean(axis=2).ravel() > 128
    return int("".join("1" if bit else "0" for bit in bits), 2) / 1000


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 128),
    pixels: str = "yuv420p",
    b_frames: int = 2,
    stated_rate: int = 25,
    shift: float = 0.0,
    sound: float = 0.0,
    sound_codec: str = "aac",
    turn: tuple[float, bool] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    last: float = 0.04,
) -> Path:
    """Write a picture for each time, which shows that time.

    Args:
        path: of the file.
        times: in seconds, from the start of the video, to 1 ms.
        codec: encoder.
        size: height and width.
        pixels: FFmpeg's name of the pixel format.
        b_frames: consecutive pictures that are stored out of order.
        stated_rate: what the file claims.
        shift: seconds by which the pictures are late; they show the time with it.
        sound: seconds of silence in a track that starts at 0, or none.
        sound_codec: aac, or pcm_s16le, which needs no time to start.
        turn: degrees and mirroring of the display matrix.
        aspect: width over height of a pixel.
        options: of the encoder.
        muxer: its options.
        last: seconds for which the last picture is shown.
    """
    tick = Fraction(1, 1000)
    with av.open(str(path), "w", options=muxer or {}) as out:
        video = out.add_stream(codec, rate=stated_rate, options=options or {})
        video.height, video.width, video.pix_fmt = *size, pixels
        video.codec_context.time_base = video.time_base = tick
        if codec in ("libx264", "mpeg4", "mpeg2video"):
            video.codec_context.max_b_frames = b_frames
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if turn:
            video.set_display_rotation(turn[0], hflip=turn[1])
        audio = out.add_stream(sound_codec, rate=16_000, layout="mono") if sound else None
        packets = []
        for time, end in zip(times, [*times[1:], times[-1] + last], strict=True):
            shown = round((time + shift) * 1000)
            frame = av.VideoFrame.from_ndarray(clock_picture(shown, *size)).reformat(format=pixels)
            frame.pts, frame.time_base, frame.duration = shown, tick, round((end - time) * 1000)
            packets += video.encode(frame)
        packets += video.encode()
        if audio is not None:
            kind, number = ("fltp", np.float32) if sound_codec == "aac" else ("s16", np.int16)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, round(sound * 16_000)), number), kind, "mono")
            silence.sample_rate, silence.pts, silence.time_base = 16_000, 0, Fraction(1, 16_000)
            packets += [*audio.encode(silence), *audio.encode()]
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            out.mux(packet)
    return path


def cut_by_edit_list(path: Path, seconds: float) -> None:
    """Make the edit list of a one-track MP4 file start later, as a cut without encoding does."""
    content = bytearray(path.read_bytes())
    at, clock = content.index(b"elst"), content.index(b"mdhd")
    assert content[at + 4] == 0, "version 0 of the box"
    assert struct.unpack_from(">I", content, at + 8) == (1,), "one entry"
    media_rate = struct.unpack_from(">I", content, clock + 16)[0]
    movie_rate = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)[0]
    length, begin = struct.unpack_from(">Ii", content, at + 12)
    struct.pack_into(">Ii", content, at + 12, length - round(seconds * movie_rate), begin + round(seconds * media_rate))
    path.write_bytes(content)
