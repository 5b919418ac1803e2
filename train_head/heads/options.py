"""What heads share: their options, and the last layers, from the summary of a clip to one value per target.

One option name means the same in every head, so that one CLI option serves all.

| option | means |
|---|---|
| `hidden` | size of what the head computes per frame or clip; 0 takes the input's size |
| `layers` | layers of the part that gives the head its name |
| `dropout` | between those layers, and before the regressor's |
| `global_vector` | whether the time mean of the input stands beside the summary |
| `pool_frames` | consecutive frames that are averaged into one before anything else |
| `heads` | attention heads |
| `output` | activation of the predictions: "linear", "tanh" or "sigmoid" |
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from train_head.errors import TrainSettingsError, check_known
from train_head.heads.pooling import time_mean

OUTPUTS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
"""The authors' code has no activation at the output; the final paper speaks of tanh."""
LOWEST = {"hidden": 0, "layers": 1, "heads": 1, "pool_frames": 1, "kernel": 1, "width": 0}
"""The least that a whole-number option may be."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Options of a head; each is checked by its name.

    Raises:
        TrainSettingsError: a wrong type or a value out of range; says which and what it may be.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name in LOWEST and not (number and isinstance(value, int) and LOWEST[name] <= value < 2**31):
                raise TrainSettingsError(f"{name} must be a whole number, {LOWEST[name]} or more, got {value!r}")
            if name == "dropout" and not (number and 0 <= value < 1):
                raise TrainSettingsError(f"dropout must lie in [0, 1), got {value!r}")
            if name == "output":
                check_known("output", [value], OUTPUTS)
            if name == "global_vector" and not isinstance(value, bool):
                raise TrainSettingsError(f"global_vector must be true or false, got {value!r}")


class Regressor(nn.Sequential):
    """Dropout → Linear → Tanh → Dropout → Linear → output: the paper's regressor, with dropout before its layers.

    Args:
        dim: size of the input's frames.
        size: of the summary; the first layer keeps the width of both together, as the paper's does.
        targets: values per clip.
        options: of the head; `dropout`, `global_vector` and `output` are read.
        dropout: False leaves the dropout layers out.
    """

    def __init__(self, dim: int, size: int, targets: int, options: Any, *, dropout: bool = True) -> None:
        width = size + dim * options.global_vector
        layers = [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, targets), OUTPUTS[options.output]()]
        if dropout:
            layers = [nn.Dropout(options.dropout), *layers[:2], nn.Dropout(options.dropout), *layers[2:]]
        super().__init__(*layers)
        self.global_vector = options.global_vector

    def predict(self, summary: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
        """Predict from a summary, with the time mean of the input before it where `global_vector` is set.

        Args:
            summary: (batch, size).
            frames: (batch, frames, dim), the input.
            lengths: (batch,).

        Returns:
            (batch, targets).
        """
        if self.global_vector:
            summary = torch.cat([time_mean(frames, lengths), summary], dim=1)
        out: Tensor = self(summary)
        return out
