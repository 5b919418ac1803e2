"""Describe the mfcc backbone without importing torch."""

import hashlib
from typing import TYPE_CHECKING

from cache.licences import KNOWN
from extract.backbones.mfcc.layout import DIM, HOP_SECONDS, LAYOUT
from extract.backbones.protocol import Backbone, Identity

if TYPE_CHECKING:
    import torch


class MfccFamily:
    """See `Family`. There are no weights."""

    def identify(self, name: str) -> Identity:
        """Describe the backbone."""
        made = hashlib.sha256(LAYOUT.encode()).hexdigest()
        return Identity(
            source=name,
            fingerprint={"backbone": name, "weights_sha256": made, "layer": "mfcc+deltas", "normalisation": "none"},
            dim=DIM,
            hop_seconds=HOP_SECONDS,
            any_hop=True,
            precisions=("fp32",),
            small=True,
            licence=KNOWN[name],
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:  # noqa: ARG002
        """Build the transform, which always computes in float32."""
        from extract.backbones.mfcc.encoder import MfccBackbone

        return MfccBackbone(identity.hop_seconds or HOP_SECONDS, device)


MFCC = MfccFamily()
