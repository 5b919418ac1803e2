"""How training batches are changed."""

import math
from dataclasses import dataclass, fields

from train_head.errors import TrainSettingsError


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How training batches are changed; 0 turns each kind off.

    Attributes:
        time_masks: spans per clip that are replaced by the clip's mean.
        time_mask_frames: longest span; no span is longer than half its clip.
        frame_dropout: chance of each frame to be taken out, the others closing up.
        noise: spread of Gaussian noise, in units of each feature's own spread over the batch.
        mixup: a of the Beta(a, a) distribution from which the share of another clip is drawn.

    Raises:
        TrainSettingsError: a value is of the wrong type or out of range.
    """

    time_masks: int = 0
    time_mask_frames: int = 25
    frame_dropout: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for option in fields(self):
            value, whole = getattr(self, option.name), isinstance(option.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise TrainSettingsError(f"augment: {option.name} must be {kind}, got {value!r}")
            if not 0 <= value < math.inf:
                raise TrainSettingsError(f"augment: {option.name} must be finite and not negative, got {value}")
            object.__setattr__(self, option.name, value if whole else float(value))
        if self.time_mask_frames < 1:
            raise TrainSettingsError(f"augment: time_mask_frames must be at least 1, got {self.time_mask_frames}")
        if self.frame_dropout >= 1:
            raise TrainSettingsError(f"augment: frame_dropout must lie below 1, got {self.frame_dropout}")
