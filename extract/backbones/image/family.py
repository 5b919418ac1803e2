"""Describe an image encoder of the transformers library or of timm from its files, without importing torch."""

import importlib.util
from typing import TYPE_CHECKING

from extract.backbones.checkpoint import Checkpoint, find_checkpoint
from extract.backbones.identity import identity_of
from extract.backbones.image.models import MODELS, TIMM, dim_of
from extract.backbones.protocol import Backbone, Identity, Regularisation, Trainable
from extract.errors import BackboneError, ExtractSettingsError

if TYPE_CHECKING:
    import torch


class ImageFamily:
    """See `PooledFamily`."""

    has_poolings = True

    def identify(self, name: str, pooling: str | None = None) -> Identity:
        """Read the configuration and hash the weights.

        Args:
            name: folder, Hugging Face id, or `ID@REVISION`.
            pooling: "cls" or "pooled"; None is the default of its architecture.

        Raises:
            BackboneError: not a checkpoint that can be run.
            ExtractSettingsError: it has no such output.
        """
        checkpoint = find_checkpoint(name)
        outputs = MODELS[checkpoint.model_type or ""].outputs
        if pooling is not None and pooling not in outputs:
            raise ExtractSettingsError(
                f"--pooling {pooling}: {checkpoint.folder} is a {checkpoint.model_type} model, of which emi takes "
                f"{' or '.join(outputs)}; leave it out"
            )
        _check_supported(checkpoint)
        return identity_of(
            name,
            checkpoint,
            {
                "layer": "last",
                "pooling": pooling or outputs[0],
            },
            dim=dim_of(checkpoint),
            hop_seconds=None,
            modality="face",
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:
        """Build the model; every weight of the encoder must be in the file."""
        from extract.backbones.image.encoder import load_image_encoder

        checkpoint = find_checkpoint(identity.source, identity.revision)
        return load_image_encoder(checkpoint, identity.fingerprint["pooling"], identity.dim, device, precision)

    def load_trainable(
        self, identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
    ) -> Trainable:
        """See `extract.backbones.protocol.TrainableFamily`."""
        from extract.backbones.image.trainable import load_trainable_image_encoder

        checkpoint, pooling = find_checkpoint(identity.source, identity.revision), identity.fingerprint["pooling"]
        return load_trainable_image_encoder(checkpoint, pooling, identity.dim, device, precision, regularisation)


IMAGES = ImageFamily()


def _check_supported(checkpoint: Checkpoint) -> None:
    if checkpoint.model_type == TIMM:
        if importlib.util.find_spec("timm") is None:
            raise BackboneError(
                f"{checkpoint.folder} is a model of timm, which is not installed; run: pip install 'emi-mimicry[timm]'"
            )
    elif not checkpoint.preprocessor:
        raise BackboneError(
            f"{checkpoint.folder} has no preprocessor_config.json, which says how images are scaled and normalised; "
            "download the checkpoint again, or copy that file from the checkpoint that it was trained from"
        )
