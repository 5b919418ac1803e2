"""Describe a Whisper checkpoint from its files, without importing torch."""

from typing import TYPE_CHECKING

from extract.backbones.checkpoint import Checkpoint, find_checkpoint
from extract.backbones.identity import identity_of
from extract.backbones.protocol import Identity
from extract.errors import BackboneError, ExtractSettingsError

if TYPE_CHECKING:
    import torch

    from extract.backbones.whisper.encoder import WhisperBackbone

HOP_SECONDS = 0.02
_NEEDED = (
    "d_model",
    "num_mel_bins",
    "max_source_positions",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
)


class WhisperFamily:
    """See `LayeredFamily`: the encoder of a Whisper checkpoint, of which any layer can be taken."""

    has_layers = True

    def identify(self, name: str, layer: int | None = None) -> Identity:
        """Read the configuration and hash the weights.

        Args:
            name: folder, Hugging Face id, or `ID@REVISION`.
            layer: number of the layer whose output is taken, 0 for what enters the first; None for the last and
                its normalisation.

        Raises:
            BackboneError: not a checkpoint of Whisper that can be run.
            ExtractSettingsError: there is no such layer.
        """
        checkpoint = find_checkpoint(name)
        _check_supported(checkpoint, layer)
        return identity_of(
            name,
            checkpoint,
            {
                "layer": "last" if layer is None else layer,
                "normalisation": "log-mel",
            },
            dim=checkpoint.config["d_model"],
            hop_seconds=HOP_SECONDS,
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> "WhisperBackbone":
        """Build the encoder; every weight that it needs must be in the file."""
        from extract.backbones.whisper.encoder import load_whisper

        layer = identity.fingerprint["layer"]
        checkpoint = find_checkpoint(identity.source, identity.revision)
        return load_whisper(checkpoint, None if layer == "last" else layer, device, precision)


WHISPER = WhisperFamily()


def _check_supported(checkpoint: Checkpoint, layer: int | None) -> None:
    config = checkpoint.config
    missing = [key for key in _NEEDED if not isinstance(config.get(key), int)]
    if missing:
        raise BackboneError(f"{checkpoint.folder}/config.json gives no number for {missing[0]}; download it again")
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding"):
        raise BackboneError(
            f"{checkpoint.folder} has another activation than gelu or scales its embedding, which no published Whisper "
            "does, and emi cannot run it"
        )
    wanted = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160, "feature_size": config["num_mel_bins"]}
    for key, value in wanted.items():
        found = checkpoint.preprocessor.get(key, value)
        if found != value:
            raise BackboneError(
                f"{checkpoint.folder}: {key} is {found}, and emi computes Whisper's spectra with {value}"
            )
    if layer is not None and not 0 <= layer <= config["encoder_layers"]:
        raise ExtractSettingsError(
            f"--layer {layer}: the encoder of {checkpoint.folder} has {config['encoder_layers']} layers; give 0 to "
            f"{config['encoder_layers']}, or leave it out for the last, normalised"
        )
