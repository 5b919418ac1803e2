"""What the families of checkpoints say alike of a backbone: where it is, whose its weights are, what names it."""

from collections.abc import Mapping
from typing import Any

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.licence import licence_of_weights
from extract.backbones.protocol import Identity


def identity_of(name: str, checkpoint: Checkpoint, fingerprint: Mapping[str, Any], **fields: Any) -> Identity:
    """Describe the backbone in a checkpoint; its weights are hashed.

    Args:
        name: folder, Hugging Face id, or `ID@REVISION`, under which it was found.
        checkpoint: what was found.
        fingerprint: what changes a number, beside the files themselves: layer, normalisation and the like.
        **fields: of `Identity`: dim, hop_seconds and others.
    """
    source = name if checkpoint.commit is None else name.partition("@")[0]
    return Identity(
        source=source,
        revision=checkpoint.commit,
        fingerprint={
            "backbone": checkpoint.display_name(source),
            "weights_sha256": checkpoint.weights_sha256(),
            "config_sha256": checkpoint.config_sha256(),
            **fingerprint,
        },
        licence=licence_of_weights(source, checkpoint.folder),
        **fields,
    )
