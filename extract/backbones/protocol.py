"""The interfaces of a backbone: what it is, frozen for extraction, and trainable."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cache.licences import UNKNOWN, Licence

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A backbone described without loading it.

    Attributes:
        source: name, Hugging Face id or folder from which `Family.load` loads it.
        modality: what it takes: a key of `extract.modality.registry.MODALITIES`.
        fingerprint: its part of a cache's fingerprint: backbone, weights_sha256, config_sha256, layer, normalisation.
        dim: features per frame.
        hop_seconds: time from one frame to the next, by default where there is `any_hop`; None where frames have times,
            or where the settings decide.
        vad_names: names of the regression head's outputs in their order, or empty.
        precisions: in which it can compute, of "fp32", "bf16" and "fp16".
        revision: commit of the repository that `source` names on the hub, or None for other sources.
        any_hop: whether frames of sound can start at any time (`--hop`, `--fps native`). `Family.load` then gets the
            hop of the settings in `hop_seconds`.
        small: whether a call costs more than computing a second of audio, so that batches should be large.
        note: a sentence for the user, or empty.
        licence: of the weights.
    """

    source: str
    fingerprint: Mapping[str, Any]
    dim: int
    hop_seconds: float | None
    vad_names: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    revision: str | None = None
    small: bool = False
    note: str = ""
    licence: Licence = UNKNOWN
    modality: str = "audio"
    any_hop: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """A batch of clips without padding, laid out as in the cache.

    Attributes:
        frames: (total frames, dim) float32, the clips one after the other.
        lengths: frames of each clip.
        vad: (total frames, 3) float32, or None.
        vad_pooled: (clips, 3) float32, or None.
        times: (total frames, 2) float32, start and end of each frame in seconds, where the cache has times.
        valid: (total frames,) bool, where there was something, where the cache marks it.
    """

    frames: "Tensor"
    lengths: Sequence[int]
    vad: "Tensor | None" = None
    vad_pooled: "Tensor | None" = None
    times: "Tensor | None" = None
    valid: "Tensor | None" = None


class Backbone(Protocol):
    """A loaded torch module that maps clips of its modality to features. A batch gives the features of each alone."""

    @property
    def pads(self) -> bool:
        """Whether a batch is computed with padding, which the statistics then count."""

    def __call__(self, waveforms: Sequence[Any], /) -> Features:
        """Run a batch of clips on the backbone's device.

        Args:
            waveforms: what `Modality.inputs` makes of decoded clips. Of audio that is (samples,) float32 at 16 kHz, not
                normalised, or `extract.audio.timed_sound.TimedSound`; of faces, `extract.faces.reading.FaceCrops`.
        """

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip of this size."""


class Blockwise(Backbone, Protocol):
    """A `Backbone` that can compute a clip piece by piece, so that a long one needs little memory."""

    def in_blocks(self, blocks: "Iterable[Tensor]") -> "Iterator[Tensor]":
        """Yield the features of one clip in pieces of (frames, dim) float32.

        Args:
            blocks: the clip in pieces of any length, in order, on the backbone's device.

        Returns:
            Together the frames of a call with the whole clip, up to rounding.
        """


class BlockwiseAtTimes(Blockwise, Protocol):
    """A `Blockwise` with `Identity.any_hop`."""

    def at_times(self, blocks: "Iterable[Tensor]", times: "Tensor") -> "Iterator[Tensor]":
        """Yield the features of one clip as `in_blocks`, of frames at `times` (see `TimedSound`)."""


class Family(Protocol):
    """Backbones of one kind."""

    def identify(self, name: str) -> Identity:
        """Describe a backbone from its files, without building the model."""

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:
        """Build the model in evaluation mode; `precision` is "fp32", "bf16" or "fp16"."""


class LayeredFamily(Family, Protocol):
    """A `Family` of which any layer can be taken (`--layer`)."""

    has_layers: bool

    def identify(self, name: str, layer: int | None = None) -> Identity:
        """Describe a backbone; `layer` is in its fingerprint, None is the last."""


class PooledFamily(Family, Protocol):
    """A `Family` whose output can be chosen (`--pooling`)."""

    has_poolings: bool

    def identify(self, name: str, pooling: str | None = None) -> Identity:
        """Describe a backbone; `pooling` is in its fingerprint, None is that of its kind."""


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Changes to a backbone's forward pass in training. By default, only the checkpoint's dropout is active.

    Attributes:
        dropout: probability in every dropout layer; None keeps the checkpoint's.
        layerdrop: probability that a layer is skipped.
        spec_augment: whether spans of frames are masked as configured in the checkpoint; clips shorter than a span are
            not masked.
        checkpointing: whether a layer's activations are computed again in the backward pass instead of kept.
    """

    dropout: float | None = None
    layerdrop: float = 0.0
    spec_augment: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Stage:
    """Modules of a backbone at one depth.

    Attributes:
        name: "cnn", "projection", "layer 1", …, "output"; "attention" of an IResNet.
        modules: with the parameters of the stage.
        called_once: whether each module is called exactly once in a forward pass. Where weights are split over
            processes, they are then gathered for that call only.
    """

    name: str
    modules: "Sequence[nn.Module]"
    called_once: bool = False


class Trainable(Backbone, Protocol):
    """A backbone with gradients: a torch module."""

    def stages(self) -> list[Stage]:
        """Return the stages from the input up, in the order in which they are frozen.

        `--freeze layers:N` counts the stages called "layer N".
        """

    def adapter_targets(self) -> "tuple[nn.Module, list[str]]":
        """Return the module for low-rank adapters, and the name endings of the linear layers that they adapt."""

    def save(self, folder: Path) -> None:
        """Write a folder for `--backbone FOLDER`: config.json and model.safetensors."""

    def restore(self, folder: Path) -> None:
        """Load the weights that `save` wrote."""


class Divisible(Trainable, Protocol):
    """A `Trainable` whose frozen first stages can be computed separately, once per clip."""

    def remembers(self, stages: int) -> int:
        """Return how many of the first `stages` stages, which are frozen, `below` can compute."""

    def below(self, waveforms: "Sequence[Tensor]", stages: int) -> "list[Tensor]":
        """Run the first stages in evaluation mode.

        Args:
            waveforms: (samples,) float32 at 16 kHz each, not normalised.
            stages: number of stages, at least 1.

        Returns:
            (frames, width) float32 of each clip, equal in any batch up to rounding.
        """

    def above(self, frames: "Sequence[Tensor]", samples: Sequence[int], stages: int) -> Features:
        """Run the other stages.

        Args:
            frames: result of `below` for each clip.
            samples: number of samples of each clip.
            stages: number of stages that `below` ran.
        """


class TrainableFamily(Protocol):
    """A `Family` whose backbones can be trained."""

    def load_trainable(
        self, identity: Identity, device: "torch.device", precision: str, regularisation: Regularisation
    ) -> Trainable:
        """Build the module. In evaluation mode it computes the features of `Family.load`, up to rounding."""
