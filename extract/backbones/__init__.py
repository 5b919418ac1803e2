"""Frozen speech models that turn waveforms into frame features, by name.

`BACKBONES` maps a family's name to its `Family`; anything that is not a name in it is a Hugging Face id or a local
folder and goes to the `transformers` family. Packages add families through the entry-point group `emi.backbones`.
"""

from importlib.metadata import entry_points
from typing import cast

from extract.backbones.protocol import Backbone, Family, Features, Identity
from extract.backbones.silero_family import SILERO
from extract.backbones.transformers_family import TRANSFORMERS

__all__ = ["BACKBONES", "Backbone", "Family", "Features", "Identity", "family_of", "identify"]

BACKBONES: dict[str, Family] = {"silero": SILERO, "transformers": TRANSFORMERS}


def family_of(name: str) -> Family:
    """The family that answers for a backbone's name, Hugging Face id or folder."""
    if name in BACKBONES and name != "transformers":
        return BACKBONES[name]
    for entry in entry_points(group="emi.backbones"):
        if entry.name == name:
            return cast(Family, entry.load())
    return TRANSFORMERS


def identify(name: str) -> Identity:
    """Describe a backbone without loading it.

    Raises:
        BackboneError: unknown, not to be found here, or of an architecture that is not supported.
    """
    return family_of(name).identify(name)
