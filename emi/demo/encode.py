"""Write mp3 and mp4 files with PyAV, with the same bytes for the same input."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS = 160, 120, 12

# mp3: LAME's compression_level 7 takes 16 ms for 2 s of noise, 5 takes 21 ms, 2 takes 62 ms. Its psychoacoustics
# hardly matter at 64 kbit/s for one channel of 22 kHz.
MP3_BIT_RATE, MP3_EFFORT = 64_000, "7"
AAC_BIT_RATE = 64_000


def write_mp3(path: Path, waveform: NDArray[np.float32], rate: int) -> None:
    """Write one channel of sound as mp3.

    Args:
        path: the file to create.
        waveform: float32 of shape (samples,) in [-1, 1].
        rate: sample rate in Hz.
    """
    with av.open(path, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout="mono")
        stream.bit_rate = MP3_BIT_RATE
        stream.codec_context.options = {"compression_level": MP3_EFFORT}
        pcm = np.rint(np.clip(waveform, -1, 1) * 32767).astype(np.int16)
        _encode(container, stream, [_sound(pcm, rate, "s16p")])


def write_mp4(path: Path, waveform: NDArray[np.float32], rate: int, *, hue: float) -> None:
    """Write a small film of a face that speaks: its mouth opens with the loudness of the sound.

    Args:
        path: the file to create.
        waveform: float32 of shape (samples,) in [-1, 1].
        rate: sample rate in Hz.
        hue: colour of the face, 0 to 1.
    """
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        film = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=FPS)
        film.width, film.height, film.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        film.codec_context.thread_count = 1  # the number of threads changes what x264 writes
        sound = container.add_stream("aac", rate=rate, layout="mono")
        sound.bit_rate = AAC_BIT_RATE
        _encode(container, film, (_picture(*numbered) for numbered in enumerate(draw_face(waveform, rate, hue=hue))))
        _encode(container, sound, [_sound(waveform, rate, "fltp")])


def draw_face(waveform: NDArray[np.float32], rate: int, *, hue: float) -> NDArray[np.uint8]:
    """Draw the pictures of the film.

    Returns:
        RGB pictures, uint8 of shape (frames, 120, 160, 3), ``FPS`` per second of sound.
    """
    hop = rate // FPS
    count = max(1, len(waveform) // hop)
    padded = np.pad(waveform, (0, max(0, count * hop - len(waveform))))
    loudness = np.sqrt((padded[: count * hop].reshape(count, hop) ** 2).mean(axis=1))
    opening = loudness / (loudness.max() + 1e-9)  # (frames,)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    face = ((x - 80) / 40) ** 2 + ((y - 60) / 52) ** 2 < 1
    eyes = ((np.abs(x - 80) - 16) / 5) ** 2 + ((y - 45) / 4) ** 2 < 1
    height = (2 + 12 * opening)[:, None, None]
    mouth = ((x - 80) / 18) ** 2 + ((y - 85) / height) ** 2 < 1  # (frames, 120, 160)
    skin = 128 + 100 * np.cos(2 * np.pi * (hue + np.array([0, 1 / 3, 2 / 3])))
    pictures = np.full((count, HEIGHT, WIDTH, 3), 40, dtype=np.uint8)
    pictures[:, face] = skin.astype(np.uint8)
    pictures[:, eyes] = 20
    pictures[mouth] = (120, 20, 30)
    return pictures


def _picture(index: int, pixels: NDArray[np.uint8]) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = index, Fraction(1, FPS)
    return frame


def _sound(waveform: NDArray[Any], rate: int, sample_format: str) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format=sample_format, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def _encode(container: av.container.OutputContainer, stream: Any, frames: Iterable[Any]) -> None:
    for frame in (*frames, None):  # None flushes the encoder
        container.mux(stream.encode(frame))
