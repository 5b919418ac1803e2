"""Sound whose rows have times of their own, as backbones take it. Importing this module imports no torch."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class TimedSound(NamedTuple):
    """Sound with the times of its frames, which only backbones with `Identity.any_hop` take.

    Attributes:
        samples: (samples,) float32 at 16 kHz, on the backbone's device.
        times: (frames, 2) float64, start and end of each frame in seconds.
    """

    samples: "torch.Tensor"
    times: "torch.Tensor"
