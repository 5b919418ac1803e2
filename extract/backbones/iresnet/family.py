"""Describe a folder of an IResNet's weights without importing torch."""

from typing import TYPE_CHECKING

from extract.backbones.checkpoint import find_checkpoint
from extract.backbones.identity import identity_of
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.protocol import Backbone, Identity, Regularisation, Trainable

if TYPE_CHECKING:
    import torch


class IResNetFamily:
    """See `Family`. A name is a folder with config.json and weights named as those of arcface_torch."""

    def identify(self, name: str) -> Identity:
        """Read the configuration and hash the weights.

        Raises:
            BackboneError: the configuration cannot be used.
        """
        checkpoint = find_checkpoint(name)
        config = IResNetConfig.read(checkpoint.config, checkpoint.folder)
        return identity_of(
            name,
            checkpoint,
            {
                "layer": "embedding",
                "normalisation": "pixels to [-1, 1], embeddings to length 1",
            },
            dim=config.dim,
            hop_seconds=None,
            precisions=("fp32", "bf16"),
            modality="face",
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:
        """Build the network; every weight must be in the file, but for a LA-SE that has not been trained."""
        from extract.backbones.iresnet.encoder import load_iresnet

        return load_iresnet(find_checkpoint(identity.source, identity.revision), device, precision)

    def load_trainable(
        self, identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
    ) -> Trainable:
        """See `extract.backbones.protocol.TrainableFamily`."""
        from extract.backbones.iresnet.trainable import load_trainable_iresnet

        checkpoint = find_checkpoint(identity.source, identity.revision)
        return load_trainable_iresnet(checkpoint, device, precision, regularisation)


IRESNET = IResNetFamily()
