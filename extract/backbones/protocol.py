"""The interface of a backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cache.licences import UNKNOWN, Licence

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A backbone described without loading it.

    Attributes:
        source: name, Hugging Face id or folder from which `Family.load` loads it.
        fingerprint: its part of a cache's fingerprint: backbone, weights_sha256, config_sha256, layer, normalisation.
        dim: features per frame.
        hop_seconds: time from one frame to the next.
        vad_names: names of the regression head's outputs in their order, or empty.
        precisions: in which it can compute, of "fp32", "bf16" and "fp16".
        revision: commit of the repository that `source` names on the hub, or None for other sources.
        small: whether a call costs more than computing a second of audio, so that batches should be large.
        note: a sentence for the user, or empty.
        licence: of the weights.
    """

    source: str
    fingerprint: Mapping[str, Any]
    dim: int
    hop_seconds: float
    vad_names: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    revision: str | None = None
    small: bool = False
    note: str = ""
    licence: Licence = UNKNOWN


@dataclass(frozen=True, slots=True)
class Features:
    """A batch of clips without padding, laid out as in the cache.

    Attributes:
        frames: (total frames, dim) float32, the clips one after the other.
        lengths: frames of each clip.
        vad: (total frames, 3) float32, or None.
        vad_pooled: (clips, 3) float32, or None.
    """

    frames: "Tensor"
    lengths: Sequence[int]
    vad: "Tensor | None" = None
    vad_pooled: "Tensor | None" = None


class Backbone(Protocol):
    """A loaded torch module that maps waveforms to features. A batch gives the features of each clip alone."""

    @property
    def pads(self) -> bool:
        """Whether a batch is computed with padding, which the statistics then count."""

    def __call__(self, waveforms: Sequence["Tensor"]) -> Features:
        """Run a batch of (samples,) float32 waveforms at 16 kHz, not normalised, on the backbone's device."""

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a waveform."""


class Family(Protocol):
    """Backbones of one kind."""

    def identify(self, name: str) -> Identity:
        """Describe a backbone from its files, without building the model."""

    def load(self, identity: Identity, device: "torch.device", precision: str) -> Backbone:
        """Build the model in evaluation mode; `precision` is "fp32", "bf16" or "fp16"."""
