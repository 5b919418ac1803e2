"""Describe a folder of VGGish's weights without importing torch."""

from typing import TYPE_CHECKING

from extract.backbones.checkpoint import find_checkpoint
from extract.backbones.identity import identity_of
from extract.backbones.protocol import Backbone, Identity
from extract.backbones.vggish.layout import DIM, HOP_SECONDS, LAST_RELU
from extract.errors import BackboneError

if TYPE_CHECKING:
    import torch


class VggishFamily:
    """See `Family`. A name is a folder with config.json and the weights that torchvggish publishes."""

    def identify(self, name: str) -> Identity:
        """Read the configuration and hash the weights.

        Raises:
            BackboneError: the configuration does not say whether a ReLU is last.
        """
        checkpoint = find_checkpoint(name)
        if not isinstance(checkpoint.config.get(LAST_RELU), bool):
            raise BackboneError(
                f"{checkpoint.folder}/config.json needs {LAST_RELU}: true or false; `emi import-weights` writes it"
            )
        return identity_of(
            name,
            checkpoint,
            {
                "layer": "embedding before PCA",
                "normalisation": "log-mel",
            },
            dim=DIM,
            hop_seconds=HOP_SECONDS,
            any_hop=True,
            precisions=("fp32", "bf16"),
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:
        """Build the network; every weight must be in the file."""
        from extract.backbones.vggish.encoder import load_vggish

        checkpoint = find_checkpoint(identity.source, identity.revision)
        return load_vggish(checkpoint, identity.hop_seconds or HOP_SECONDS, device, precision)


VGGISH = VggishFamily()
