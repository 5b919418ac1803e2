"""What a backbone must offer beside `Backbone` to be trained: its depth, its regularisation, and a way to be saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from extract.backbones.protocol import Backbone, Features, Identity

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """What changes a backbone's forward pass in training only; all off by default but the checkpoint's own dropout.

    Attributes:
        dropout: of every dropout in it; None leaves the checkpoint's own.
        layerdrop: chance of each layer to be skipped.
        spec_augment: whether spans of frames are masked as the checkpoint's configuration says; clips shorter than a
            span are left whole.
        checkpointing: whether a layer's activations are computed again on the way back instead of kept.
    """

    dropout: float | None = None
    layerdrop: float = 0.0
    spec_augment: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Stage:
    """Parts of a backbone that stand at one depth.

    Attributes:
        name: "cnn", "projection", "layer 1", …, "output".
        modules: its parameters are theirs.
        called_once: whether each module is called, once in a forward pass whatever the clips; its weights need then be
            at hand for that call only, where they are split over processes.
    """

    name: str
    modules: "Sequence[nn.Module]"
    called_once: bool = False


class Trainable(Backbone, Protocol):
    """A backbone that gradients flow through: a torch module."""

    def stages(self) -> list[Stage]:
        """From the waveform up; "layer N" are those that `--freeze layers:N` counts."""

    def adapter_targets(self) -> "tuple[nn.Module, list[str]]":
        """The module that low-rank adapters go into, and the ends of the names of the linear layers they go beside."""

    def save(self, folder: Path) -> None:
        """Write a folder that `--backbone FOLDER` opens: config.json and model.safetensors."""

    def restore(self, folder: Path) -> None:
        """Take the weights that `save` wrote."""


class Divisible(Trainable, Protocol):
    """A `Trainable` whose frozen bottom can be computed apart, once for each clip."""

    def remembers(self, stages: int) -> int:
        """Of so many frozen stages from the bottom, how many `below` can compute; 0 for none."""

    def below(self, waveforms: "Sequence[Tensor]", stages: int) -> "list[Tensor]":
        """Run the first stages as in evaluation.

        Args:
            waveforms: (samples,) float32 at 16 kHz each, not normalised.
            stages: how many, 1 or more.

        Returns:
            (frames, width) float32 of each clip, the same in any batch up to rounding.
        """

    def above(self, frames: "Sequence[Tensor]", samples: Sequence[int], stages: int) -> Features:
        """Run the rest.

        Args:
            frames: what `below` gave of each clip.
            samples: how many each clip has.
            stages: how many `below` ran.
        """


class TrainableFamily(Protocol):
    """A `Family` whose backbones can be trained."""

    def load_trainable(
        self, identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
    ) -> Trainable:
        """Build the module; what it computes in evaluation mode is what `Family.load` gives, up to rounding."""
