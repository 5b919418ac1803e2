"""What the parts measure on, made on the spot: checkpoints of every family at random, clips, labels, frames."""

import csv
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._material import TINY, make_checkpoint
from benchmarks.gpu_parts.harness import Setup
from extract.settings import SAMPLE_RATE

TARGETS = ("Admiration", "Amusement", "Determination", "Empathic Pain", "Excitement", "Joy")
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec 2.0, group": ("Wav2Vec2", {}),
    "wav2vec 2.0, layer": ("Wav2Vec2", LARGE | WIDE),
    "HuBERT, group": ("Hubert", {}),
    "HuBERT, layer": ("Hubert", LARGE | WIDE),
    "WavLM, group": ("WavLM", {}),
    "WavLM, layer": ("WavLM", LARGE | WIDE),
}
"""Classes of the transformers library in the shapes of the published base ("group") and large ("layer") models."""
LAYERS = 4
"""Of those: what a family does shows in a few, and each takes a second to make. audEERING's shape has all its 12."""


def audeering(setup: Setup) -> Path:
    """A checkpoint of audEERING's shape, regression head included; made once for all parts."""
    folder = setup.folder.parent / "shared" / "audeering"
    if not (folder / "preprocessor_config.json").is_file():  # which is written last
        folder.mkdir(parents=True, exist_ok=True)
        make_checkpoint(folder, setup.quick)
    return folder


def small(setup: Setup) -> Path:
    """The same in two layers of 128 numbers, for what is about bytes and processes."""
    folder = setup.folder.parent / "shared" / "small"
    if not (folder / "preprocessor_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make_checkpoint(folder, quick=True)
    return folder


def make_both(setup: Setup) -> None:
    """Make these two, which any number of processes can then ask for at once."""
    audeering(setup)
    small(setup)


def checkpoint(setup: Setup, family: str) -> Path:
    """A checkpoint of one of `FAMILIES`."""
    import transformers

    kind, shape = FAMILIES[family]
    folder = setup.folder / family.replace(", ", "-").replace(" ", "-")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape | (TINY if setup.quick else {"num_hidden_layers": LAYERS}))
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def voices(folder: Path, seconds: Sequence[float]) -> Path:
    """WAV files of buzzing voices with pauses and noise, of these lengths; frames differ from one another."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i, length in enumerate(seconds):
        t = np.arange(max(1, round(length * SAMPLE_RATE))) / SAMPLE_RATE
        pitch = 2 * np.pi * np.cumsum(rng.uniform(90, 240) + 30 * np.sin(5 * t)) / SAMPLE_RATE
        buzz = sum(np.sin(k * pitch) / k for k in (1, 2, 3, 5, 8)) * np.clip(np.sin(8 * t + i), 0, 1)
        samples = 6000 * buzz + 200 * rng.standard_normal(len(t))
        with wave.open(str(folder / f"{i:05d}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(samples.clip(-32_768, 32_767).astype("<i2").tobytes())
    return folder


def speech_lengths(count: int) -> NDArray[np.float64]:
    """Seconds of clips as Hume-Vidmimic2 has them: mean 6.9, 95 % under 11.5, some that are cut at 12."""
    return np.clip(np.random.default_rng(1).normal(6.9, 2.6, count), 0.3, 13.0)


def mp3s(clips: Path, folder: Path) -> Path:
    """The WAV files of a folder as mp3, 44.1 kHz in stereo, as videos have their sound."""
    import av

    folder.mkdir(parents=True)
    for path in sorted(clips.glob("*.wav")):
        with av.open(str(path)) as source, av.open(str(folder / f"{path.stem}.mp3"), "w") as out:
            stream = out.add_stream("libmp3lame", rate=44_100, layout="stereo")
            resampler = av.AudioResampler("s16p", "stereo", 44_100)
            frames = (frame for decoded in source.decode(audio=0) for frame in resampler.resample(decoded))
            for frame in (*frames, *resampler.resample(None)):
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return folder


def repeated(clips: Path, folder: Path, seconds: float, hours: float) -> Path:
    """The clips under more and more ids, hard links that take no room, until they last so many hours.

    Args:
        clips: a folder of files.
        folder: where the links go.
        seconds: that the clips last.
        hours: wanted.
    """
    for repeat in range(max(1, round(3600 * hours / seconds))):
        target = folder / f"{repeat:05d}"
        target.mkdir(parents=True)
        for path in clips.iterdir():
            (target / path.name).hardlink_to(path)
    return folder


def labels(path: Path, ids: Sequence[str], values: NDArray[Any]) -> Path:
    """A label CSV of (clips, targets) values."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [[clip, *(f"{value:.4f}" for value in row)] for clip, row in zip(ids, values, strict=True)]
        csv.writer(file).writerows([["Filename", *TARGETS], *rows])
    return path


def random_targets(clips: int, seed: int = 0) -> NDArray[np.float32]:
    """(clips, targets) float32 in [0, 1]."""
    return np.random.default_rng(seed).uniform(size=(clips, len(TARGETS))).astype(np.float32)
