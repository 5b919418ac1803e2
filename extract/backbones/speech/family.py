"""Describe a wav2vec 2.0, HuBERT or WavLM checkpoint from its files, without importing torch."""

import math
from typing import TYPE_CHECKING

from extract.backbones.checkpoint import Checkpoint, find_checkpoint
from extract.backbones.identity import identity_of
from extract.backbones.protocol import Backbone, Identity, Regularisation, Trainable
from extract.backbones.weight_names import VAD
from extract.errors import BackboneError

if TYPE_CHECKING:
    import torch

_DEFAULT_STRIDES = (5, 2, 2, 2, 2, 2, 2)


class TransformersFamily:
    """See `Family`."""

    def identify(self, name: str) -> Identity:
        """Read the configuration and hash the weights."""
        checkpoint = find_checkpoint(name)
        config = checkpoint.config
        _check_supported(checkpoint)
        layout = checkpoint.layout()
        left_out = (
            f"{checkpoint.folder.name} has weights beside its encoder that are left out: {', '.join(layout.others)} (a "
            "head is used where its three outputs are called arousal, dominance and valence)"
        )
        return identity_of(
            name,
            checkpoint,
            {
                "layer": "last",
                "normalisation": "clip-mean-variance" if _normalises(checkpoint) else "none",
            },
            note=left_out if layout.others else "",
            dim=config.get("hidden_size", 768),
            hop_seconds=math.prod(config.get("conv_stride", _DEFAULT_STRIDES)) / 16_000,
            vad_names=() if layout.head is None else VAD,
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:
        """Build the model; every weight of the encoder must be in the file."""
        from extract.backbones.speech.encoder import load_speech_transformer

        checkpoint = find_checkpoint(identity.source, identity.revision)
        options = {"normalise": _normalises(checkpoint), "has_head": bool(identity.vad_names)}
        return load_speech_transformer(checkpoint, device, precision, **options)

    def load_trainable(
        self, identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
    ) -> Trainable:
        """See `extract.backbones.protocol.TrainableFamily`."""
        from extract.backbones.speech.trainable_transformer import load_trainable_transformer

        checkpoint = find_checkpoint(identity.source, identity.revision)
        options = {"normalise": _normalises(checkpoint), "has_head": bool(identity.vad_names)}
        return load_trainable_transformer(checkpoint, device, precision, regularisation, **options)


TRANSFORMERS = TransformersFamily()


def _check_supported(checkpoint: Checkpoint) -> None:
    if checkpoint.config.get("add_adapter"):
        raise BackboneError(
            f"{checkpoint.folder} has an adapter that shortens its output (add_adapter), and emi runs none; choose a "
            "checkpoint without, or --backbone silero"
        )
    rate = checkpoint.preprocessor.get("sampling_rate", 16_000)
    if rate != 16_000:
        raise BackboneError(f"{checkpoint.folder} expects {rate} Hz audio, and emi decodes to 16000 Hz")


def _normalises(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.preprocessor.get("do_normalize", True))
