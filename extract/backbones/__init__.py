"""Frozen models that turn clips into frame features, by name.

`BACKBONES` are those with a name: their weights come with a package. Any other name is a local folder or a Hugging Face
id; `MODEL_TYPES` maps the `model_type` in its config.json to the family that runs it. To add a family, make a folder
beside the others and add a line here. Packages add named families through the entry-point group `emi.backbones`.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cache.paths import at_home
from extract.backbones.checkpoint import find_checkpoint
from extract.backbones.image.family import IMAGES
from extract.backbones.image.models import MODELS
from extract.backbones.iresnet.family import IRESNET
from extract.backbones.mfcc.family import MFCC
from extract.backbones.mtcnn.family import MTCNN
from extract.backbones.protocol import (
    Backbone,
    Blockwise,
    BlockwiseAtTimes,
    Divisible,
    Family,
    Features,
    Identity,
    LayeredFamily,
    PooledFamily,
    Regularisation,
    Stage,
    Trainable,
    TrainableFamily,
)
from extract.backbones.silero.family import SILERO
from extract.backbones.speech.family import TRANSFORMERS
from extract.backbones.vggish.family import VGGISH
from extract.backbones.whisper.family import WHISPER
from extract.errors import BackboneError, ExtractSettingsError

if TYPE_CHECKING:
    import torch

__all__ = [
    "BACKBONES",
    "MODEL_TYPES",
    "Backbone",
    "Blockwise",
    "BlockwiseAtTimes",
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

BACKBONES: dict[str, Family] = {"silero": SILERO, "mfcc": MFCC, "mtcnn": MTCNN}

MODEL_TYPES: dict[str, Family] = {
    "silero-vad": SILERO,
    "wav2vec2": TRANSFORMERS,
    "hubert": TRANSFORMERS,
    "wavlm": TRANSFORMERS,
    "whisper": WHISPER,
    **dict.fromkeys(MODELS, IMAGES),
    "vggish": VGGISH,
    "iresnet": IRESNET,
}


def named_family(name: str) -> Family | None:
    """Return the family of a name that is neither a folder nor a Hugging Face id, or None."""
    entries = (entry for entry in entry_points(group="emi.backbones") if entry.name == name)
    return BACKBONES.get(name) or next((cast(Family, entry.load()) for entry in entries), None)


def family_of(name: str, revision: str | None = None) -> Family:
    """Return the family of a backbone's name, Hugging Face id or folder.

    Raises:
        BackboneError: it is not available, or no family runs it.
    """
    if (named := named_family(name)) is not None:
        return named
    checkpoint = find_checkpoint(name, revision)
    kind = checkpoint.model_type
    if kind not in MODEL_TYPES:
        raise BackboneError(
            f"{checkpoint.folder} is a {kind!r} model, and emi runs {', '.join(MODEL_TYPES)}; choose one of those, or "
            "--backbone silero"
        )
    return MODEL_TYPES[kind]


def load_trainable(
    identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
) -> Trainable:
    """Load a backbone whose weights can be trained, in evaluation mode.

    Raises:
        BackboneError: its family does not support training, or its files do not fit.
    """
    family = family_of(identity.source, identity.revision)
    if not hasattr(family, "load_trainable"):
        raise BackboneError(
            f"the backbone {identity.source!r} cannot be trained by emi (its family has no load_trainable); "
            "extract its features and train a head on them with `emi train-head`"
        )
    return cast(TrainableFamily, family).load_trainable(identity, device, precision, regularisation)


def identify(name: str, revision: str | None = None, layer: int | None = None, pooling: str | None = None) -> Identity:
    """Describe a backbone without loading it.

    Args:
        name: of a family, a Hugging Face id, also as `ID@REVISION`, or a local folder.
        revision: branch, tag or commit of an id; the hub's main branch by default.
        layer: number of the layer whose output is taken; None is the last.
        pooling: output of an image encoder, "cls" or "pooled"; None is that of its kind.

    Raises:
        BackboneError: unknown, not available, or of an architecture that is not supported.
        ExtractSettingsError: its layer or its output cannot be chosen, or there is no such one.
    """
    if revision is not None:
        if named_family(name) or Path(at_home(name)).is_dir() or "@" in name:
            raise BackboneError(
                f"--revision {revision} chooses a branch, tag or commit of a Hugging Face id, and the backbone is "
                f"{name!r}; leave it out"
            )
        name = f"{name}@{revision}"
    family = family_of(name)
    if layer is not None and not getattr(family, "has_layers", False):
        raise ExtractSettingsError(
            f"--layer {layer} chooses a layer of a Whisper encoder, and the backbone is {name!r}; leave it out"
        )
    if pooling is not None and not getattr(family, "has_poolings", False):
        raise ExtractSettingsError(
            f"--pooling {pooling} chooses the output of an image encoder, and the backbone is {name!r}; leave it out"
        )
    if pooling is not None:
        return cast(PooledFamily, family).identify(name, pooling)
    return family.identify(name) if layer is None else cast(LayeredFamily, family).identify(name, layer)
