"""Write mp3 and mp4 files with PyAV, with the same bytes for the same input."""

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

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


def write_mp4(
    path: Path, pictures: Iterable[NDArray[np.uint8]], fps: Fraction, waveform: NDArray[np.float32], rate: int
) -> None:
    """Write a film with one channel of sound.

    Args:
        path: the file to create.
        pictures: at least one, each uint8 of shape (height, width, 3), RGB; both sides even.
        fps: pictures per second.
        waveform: float32 of shape (samples,) in [-1, 1].
        rate: its sample rate in Hz.
    """
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        film = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=fps)
        film.height, film.width, film.pix_fmt = *first.shape[:2], "yuv420p"
        # mbtree=0: x264 sums that tree in varying orders, and writes other bytes each time
        film.codec_context.options = {"preset": "veryfast", "crf": "16", "x264-params": "mbtree=0"}
        film.codec_context.thread_count = 1  # the number of threads changes what x264 writes
        sound = container.add_stream("aac", rate=rate, layout="mono")
        sound.bit_rate = AAC_BIT_RATE
        _encode(container, film, _frames(itertools.chain([first], pictures), fps))
        _encode(container, sound, [_sound(waveform, rate, "fltp")])


def _frames(pictures: Iterable[NDArray[np.uint8]], fps: Fraction) -> Iterator[av.VideoFrame]:
    for index, pixels in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = index, 1 / fps
        yield frame


def _sound(waveform: NDArray[Any], rate: int, sample_format: str) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format=sample_format, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def _encode(container: av.container.OutputContainer, stream: Any, frames: Iterable[Any]) -> None:
    for frame in itertools.chain(frames, [None]):  # None flushes the encoder
        container.mux(stream.encode(frame))
