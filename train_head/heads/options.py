"""Check the options that heads share. One name means the same in every head, so that one CLI option serves all.

| option | means |
|---|---|
| `hidden` | size of what the head computes per frame or clip; 0 takes the input's size |
| `layers` | layers of the part that gives the head its name |
| `dropout` | between those layers, and before the regressor's |
| `causal` | whether a row sees only those up to it |
| `global_vector` | whether the time mean of the input stands beside the summary |
| `pool_frames` | consecutive frames that are averaged into one before anything else |
| `heads` | attention heads |
| `width` | size of the layers inside attention: feed-forward, or what is attended to |
| `activation` | between the layers of a fusion: "tanh", "relu" or "gelu" |
| `output` | activation of the predictions: "linear", "tanh" or "sigmoid" |
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from train_head.errors import TrainSettingsError, check_known
from train_head.heads.regressor import ACTIVATIONS, OUTPUTS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LOWEST = {
    "hidden": 0,
    "layers": 1,
    "heads": 1,
    "pool_frames": 1,
    "kernel": 1,
    "branches": 1,
    "width": 0,
    "width_in": 1,
}
"""The least that a whole-number option may be."""
BLOCKS = ("residual", "weightnorm")
CHOICES = {"output": OUTPUTS, "activation": ACTIVATIONS, "block": BLOCKS}


class HeadOptions:
    """Base of the options of heads and fusions, which are dataclasses: checks each option by its name.

    Raises:
        TrainSettingsError: a wrong type or a value out of range; says which and what it may be.
    """

    def __post_init__(self) -> None:
        for field in fields(cast("DataclassInstance", self)):
            _check(field.name, getattr(self, field.name))


def _check(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in LOWEST and not (number and isinstance(value, int) and LOWEST[name] <= value < 2**31):
        raise TrainSettingsError(f"{name} must be a whole number, {LOWEST[name]} or more, got {value!r}")
    if name == "dropout" and not (number and 0 <= value < 1):
        raise TrainSettingsError(f"dropout must lie in [0, 1), got {value!r}")
    if name in CHOICES:
        check_known(name, [value], CHOICES[name])
    if name == "slope" and not (number and 0 <= value < math.inf):
        raise TrainSettingsError(f"slope must be finite and not negative, got {value!r}")
    if name == "query" and not isinstance(value, str):
        raise TrainSettingsError(f"query must be the name of a stream, got {value!r}")
    if name in ("global_vector", "causal", "positions", "per_target") and not isinstance(value, bool):
        raise TrainSettingsError(f"{name} must be true or false, got {value!r}")


def check_multiple(name: str, value: int, heads: int) -> None:
    """Refuse a size that cannot be cut into attention heads.

    Raises:
        TrainSettingsError: says the next larger size that can.
    """
    if value % heads:
        near = math.ceil(value / heads) * heads
        raise TrainSettingsError(f"{name} must be a multiple of heads ({heads}), such as {near}, got {value}")


def resolve_options(what: str, name: str, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    """Check options and fill in their defaults.

    Args:
        what: kind of thing whose options they are: "head" or "fusion".
        name: of the thing.
        given: those that are given.
        kinds: classes with `Options`, by name.

    Raises:
        TrainSettingsError: an unknown name or option, or a value out of range.
    """
    check_known(what, [name], kinds)
    kind = kinds[name].Options
    check_known(f"option of {what} {name!r}", given, [field.name for field in fields(kind)])
    return kind(**given)


def between_layers(options: Any) -> float:
    """Return the dropout between stacked recurrent layers: 0 where there is one, of which torch would warn."""
    dropout: float = options.dropout if options.layers > 1 else 0.0
    return dropout
