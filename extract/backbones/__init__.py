"""Frozen speech models that turn waveforms into frame features, by name.

`BACKBONES` maps a family's name to its `Family`; anything that is not a name in it is a Hugging Face id or a local
folder and goes to the `transformers` family. Packages add families through the entry-point group `emi.backbones`.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, cast

from extract.backbones.protocol import (
    Backbone,
    Divisible,
    Family,
    Features,
    Identity,
    Regularisation,
    Stage,
    Trainable,
    TrainableFamily,
)
from extract.backbones.silero.family import SILERO, is_silero_folder
from extract.backbones.speech.family import TRANSFORMERS
from extract.errors import BackboneError

if TYPE_CHECKING:
    import torch

__all__ = [
    "BACKBONES",
    "Backbone",
    "Divisible",
    "Family",
    "Features",
    "Identity",
    "Regularisation",
    "Stage",
    "Trainable",
    "family_of",
    "identify",
    "load_trainable",
]

BACKBONES: dict[str, Family] = {"silero": SILERO, "transformers": TRANSFORMERS}


def family_of(name: str) -> Family:
    """Return the family of a backbone's name, Hugging Face id or folder."""
    if name in BACKBONES and name != "transformers":
        return BACKBONES[name]
    for entry in entry_points(group="emi.backbones"):
        if entry.name == name:
            return cast(Family, entry.load())
    return SILERO if is_silero_folder(name) else TRANSFORMERS


def load_trainable(
    identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
) -> Trainable:
    """Load a backbone whose weights can be trained, in evaluation mode.

    Raises:
        BackboneError: its family does not support training, or its files do not fit.
    """
    family = family_of(identity.source)
    if not hasattr(family, "load_trainable"):
        raise BackboneError(
            f"the backbone {identity.source!r} cannot be trained by emi (its family has no load_trainable); "
            "extract its features and train a head on them with `emi train-head`"
        )
    return cast(TrainableFamily, family).load_trainable(identity, device, precision, regularisation)


def identify(name: str, revision: str | None = None) -> Identity:
    """Describe a backbone without loading it.

    Args:
        name: of a family, a Hugging Face id, also as `ID@REVISION`, or a local folder.
        revision: branch, tag or commit of an id; the hub's main branch by default.

    Raises:
        BackboneError: unknown, not available, or of an architecture that is not supported.
    """
    if revision is None:
        return family_of(name).identify(name)
    if family_of(name) is not TRANSFORMERS or Path(name).expanduser().is_dir() or "@" in name:
        raise BackboneError(
            f"--revision {revision} chooses a branch, tag or commit of a Hugging Face id, and the backbone is "
            f"{name!r}; leave it out"
        )
    return TRANSFORMERS.identify(f"{name}@{revision}")
