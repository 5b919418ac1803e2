"""Describe the silero backbone without importing torch."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cache.licences import KNOWN
from cache.paths import at_home
from extract.backbones.checkpoint import CONFIGS, WEIGHTS
from extract.backbones.licence import licence_of_weights
from extract.backbones.protocol import Identity, Regularisation, Trainable
from extract.backbones.silero.layout import DIM, LAYOUT, MODEL_TYPE, WINDOW
from extract.errors import BackboneError

if TYPE_CHECKING:
    import torch

PACKAGED = "silero"


class SileroFamily:
    """See `Family`. A name is "silero", or a folder of fine-tuned weights."""

    def identify(self, name: str) -> Identity:
        """Hash the weights."""
        tuned = is_silero_folder(name)
        return Identity(
            source=name,
            fingerprint={
                "backbone": Path(at_home(name)).resolve().name if tuned else name,
                "weights_sha256": hashlib.sha256(weights_file(name).read_bytes()).hexdigest(),
                "config_sha256": hashlib.sha256(LAYOUT.encode()).hexdigest(),
                "layer": "conv+h+c",
                "normalisation": "none",
            },
            dim=DIM,
            hop_seconds=WINDOW / 16_000,
            precisions=("fp32",),
            small=True,
            licence=licence_of_weights(name) if tuned else KNOWN[PACKAGED],
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Trainable:  # noqa: ARG002
        """Build the module, which always computes in float32."""
        from extract.backbones.silero.encoder import load_silero

        return load_silero(weights_file(identity.source), device)

    def load_trainable(
        self, identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
    ) -> Trainable:
        """See `extract.backbones.protocol.TrainableFamily`.

        Raises:
            BackboneError: an option that silero does not have.
        """
        if regularisation.spec_augment or regularisation.layerdrop or regularisation.checkpointing:
            raise BackboneError(
                "silero has neither SpecAugment nor layers to drop or to checkpoint; leave out spec_augment, layerdrop "
                "and checkpointing"
            )
        return self.load(identity, device, precision)


SILERO = SileroFamily()


def is_silero_folder(name: str) -> bool:
    """Whether a name is a folder that `SileroBackbone.save` wrote."""
    config = Path(at_home(name)) / CONFIGS[0]
    if name in ("", PACKAGED):  # never a folder of that name in the working folder
        return False
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def weights_file(name: str) -> Path:
    """Return the weights in a folder, or in the installed silero-vad package.

    The package is not imported: that would call `torch.set_num_threads(1)` for the whole process.

    Raises:
        BackboneError: there are no weights.
    """
    if is_silero_folder(name):
        path = Path(at_home(name)) / WEIGHTS[0]
        if not path.is_file():
            raise BackboneError(
                f"{name} holds no {WEIGHTS[0]}; the backbone is incomplete: fine-tune again, or use another one"
            )
        return path
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "the silero backbone needs the package silero-vad; install it with `pip install silero-vad`"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit"
