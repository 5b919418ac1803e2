"""Describe the mtcnn backbone without importing torch."""

from typing import TYPE_CHECKING

from cache.licences import KNOWN
from extract.backbones.protocol import Backbone, Identity
from extract.faces.package import PACKAGE, SHA256, weights_folder

if TYPE_CHECKING:
    import torch

DIM = 266
"""The 256 activations before the outputs, and five landmarks in the crop."""


class MtcnnFamily:
    """See `Family`."""

    def identify(self, name: str) -> Identity:
        """Describe the backbone.

        Raises:
            BackboneError: its weights are not installed.
        """
        weights_folder()
        return Identity(
            source=name,
            fingerprint={"backbone": name, "weights_sha256": SHA256["onet"], "layer": "hidden+landmarks"},
            dim=DIM,
            hop_seconds=None,
            precisions=("fp32",),
            small=True,
            licence=KNOWN[PACKAGE],
            modality="face",
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:  # noqa: ARG002
        """Build the network, which always computes in float32."""
        from extract.backbones.mtcnn.encoder import MtcnnEncoder

        return MtcnnEncoder(device)


MTCNN = MtcnnFamily()
