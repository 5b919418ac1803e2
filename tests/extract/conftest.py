"""Media files and tiny checkpoints for the tests of stage 1, made on the spot.

Everything shared is a fixture, because test folders are no packages that could be imported from.
"""

import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import emi  # noqa: F401 - before torch, which only fixtures and tests import: it sets how OpenMP's threads wait

FORMATS = {
    "pcm_u8": "u8",
    "pcm_s16le": "s16",
    "pcm_s24le": "s32",
    "pcm_s32le": "s32",
    "pcm_f32le": "flt",
    "pcm_f64le": "dbl",
    "flac": "s16",
    "aac": "fltp",
    "libmp3lame": "fltp",
    "libopus": "flt",
}
"""Sample format in which each encoder is fed."""
CODECS = {
    ".wav": "pcm_s16le",
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".ogg": "libopus",
    ".m4a": "aac",
    ".mp4": "aac",
    ".mkv": "aac",
    ".webm": "libopus",
}
PICTURES = {".mp4": "mpeg4", ".mkv": "mpeg4", ".webm": "libvpx"}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def tones(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """(channels, samples) float64: two tones below 2 kHz in each channel, known at any time."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([tone_at(t, c) for c in range(channels)])


def tone_at(t: np.ndarray, channel: int) -> np.ndarray:
    phase = 2 * np.pi * t
    return 0.25 * np.sin((220 + 130 * channel) * phase) + 0.15 * np.sin((1700 - 90 * channel) * phase + channel)


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """(samples,) float32 at 16 kHz with pauses, harmonics and noise, so that frames differ from one another."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * 16_000))) / 16_000
    pitch = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * (0.7 + 0.1 * seed) * t)) / 16_000
    voice = sum(np.sin(k * pitch) / k for k in (1, 2, 3, 5, 8))
    loudness = np.clip(np.sin(2 * np.pi * 1.3 * t + seed), 0, 1)
    return (0.2 * loudness * voice + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


def quantise(samples: np.ndarray, codec: str) -> tuple[np.ndarray, np.ndarray]:
    """(channels, samples) as an encoder wants them, and the numbers in [-1, 1] that a lossless one keeps."""
    kind = FORMATS[codec]
    if kind == "u8":
        stored = np.round(samples * 127 + 128).astype(np.uint8)
        return stored, (stored.astype(np.float64) - 128) / 128
    if kind in ("s16", "s32"):
        bits = {"pcm_s24le": 24}.get(codec, 16 if kind == "s16" else 32)
        whole = np.round(samples * (2 ** (bits - 1) - 1)).astype(np.int64)
        stored = (whole << 8 if bits == 24 else whole).astype(np.int16 if kind == "s16" else np.int32)
        return stored, whole / 2.0 ** (bits - 1)
    stored = samples.astype(np.float64 if kind == "dbl" else np.float32)
    return stored, stored.astype(np.float64)


def write(
    path: Path,
    samples: np.ndarray | None,
    rate: int = 16_000,
    codec: str | None = None,
    picture: str | None = None,
    options: dict[str, str] | None = None,
) -> np.ndarray | None:
    """Write (channels, samples) in [-1, 1], with a video track for the suffixes that usually have one.

    Returns:
        The samples as a lossless encoder keeps them.
    """
    suffix = path.suffix.lower()
    codec, picture = codec or CODECS[suffix], picture or PICTURES.get(suffix)
    with av.open(str(path), "w", options=options or {}) as out:
        video = out.add_stream(picture, rate=10) if picture else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        if samples is None:
            _write_video(out, video, 2.0)
            return None
        stored, kept = quantise(np.atleast_2d(samples), codec)
        layout = LAYOUTS[len(stored)]
        audio = out.add_stream(codec, rate=rate, layout=layout)
        if video is not None:
            _write_video(out, video, stored.shape[1] / rate)
        kind = FORMATS[codec]
        packed = stored if kind.endswith("p") else stored.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=kind, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        out.mux(audio.encode(frame))
        out.mux(audio.encode())
    return kept


def _write_video(out: av.container.OutputContainer, stream: av.VideoStream, seconds: float) -> None:
    for i in range(max(1, round(10 * seconds))):
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * i % 256, np.uint8))
        frame.pts, frame.time_base = i, Fraction(1, 10)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


@pytest.fixture(scope="session")
def media() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(tones=tones, tone_at=tone_at, speech=speech, write=write)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten WAV files of 0.05 to 1.4 s in two folders."""
    root = tmp_path_factory.mktemp("clips")
    (root / "b").mkdir()
    for i, seconds in enumerate((0.05, 0.3, 1.4, 0.7, 0.3, 1.0, 0.2, 0.9, 0.5, 1.1)):
        write(root / ("b" if i % 3 == 0 else "") / f"{i:05d}.wav", speech(seconds, i))
    return root


@pytest.fixture(scope="session")
def read_cache():
    """Everything a cache stores of each clip, as bytes, to compare caches clip for clip."""
    from cache import open_cache

    def read(path: os.PathLike[str] | str) -> dict[str, tuple[bytes, bytes, bytes, float]]:
        with open_cache(path) as store:
            return {name: _stored(store[name]) for name in store.ids}

    return read


def _stored(clip) -> tuple[bytes, bytes, bytes, float]:
    parts = (clip.frames, clip.vad, clip.vad_pooled)
    return (*(b"" if part is None else part.tobytes() for part in parts), clip.seconds)


@pytest.fixture(scope="session")
def load():
    """Load a backbone by name or folder on the CPU: (backbone, its identity)."""
    import torch

    from extract.backbones import family_of, identify

    def load(name, precision: str = "fp32"):
        identity = identify(str(name))
        return family_of(str(name)).load(identity, torch.device("cpu"), precision), identity

    return load
