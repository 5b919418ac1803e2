"""What the benchmarks of extraction and fine-tuning measure on: checkpoints at random, and clips."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.settings import SAMPLE_RATE
from extract.sources import find_media

TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "conv_dim": [64] * 7,
}
"""Does it run at all?"""


def make_checkpoint(folder: Path, quick: bool) -> Path:
    """Random weights in the layout of audEERING's checkpoint, regression head included; two small layers if quick."""
    from safetensors.torch import save_file
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    shape: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096}
    shape |= {"num_attention_heads": 16, "num_hidden_layers": 12}
    if quick:
        shape = TINY
    config = Wav2Vec2Config(
        **shape,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        architectures=["Wav2Vec2ForSpeechClassification"],
        id2label={0: "arousal", 1: "dominance", 2: "valence"},
    )
    torch.manual_seed(0)
    hidden = config.hidden_size
    weights = {f"wav2vec2.{name}": tensor for name, tensor in Wav2Vec2Model(config).state_dict().items()}
    weights |= {
        "classifier.dense.weight": torch.randn(hidden, hidden) / hidden**0.5,
        "classifier.dense.bias": torch.zeros(hidden),
        "classifier.out_proj.weight": torch.randn(3, hidden) / hidden**0.5,
        "classifier.out_proj.bias": torch.zeros(3),
    }
    config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def make_clips(folder: Path, count: int, mean: float, spread: float) -> Path:
    """Noise whose lengths are normally distributed, between 0.5 and 12 s."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, seconds in enumerate(np.clip(rng.normal(mean, spread, count), 0.5, 12)):
        samples = (3000 * rng.standard_normal(int(seconds * SAMPLE_RATE), np.float32)).astype("<i2")
        with wave.open(str(folder / f"{i:05d}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    return folder


def repeat_clips(clips: Path, folder: Path, hours: float) -> Path:
    """Links to the clips under new ids, until they last so many hours by what a decoder reads of each."""
    from extract.audio.media import decode

    sources = find_media(clips)
    seconds = sum(decode(source.path).seconds for source in sources)
    for repeat in range(max(1, round(hours * 3600 / seconds))):
        target = folder / f"{repeat:05d}"
        target.mkdir(parents=True)
        for i, source in enumerate(sources):
            (target / f"{i:05d}{source.path.suffix}").symlink_to(source.path.resolve())
    return folder
