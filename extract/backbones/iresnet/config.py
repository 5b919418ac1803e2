"""The config.json of an IResNet folder. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from extract.errors import BackboneError

MODEL_TYPE = "iresnet"
ATTENTIONS = ("la-se", "none")
GATES = ("2*sigmoid", "sigmoid")
SIDE = 112
"""Pixels of a crop."""


@dataclass(frozen=True, kw_only=True)
class IResNetConfig:
    """Sizes of the layers; the defaults are those of IResNet-50.

    Attributes:
        units: residual units of the four stages.
        widths: channels of the stages.
        dim: numbers of an embedding.
        attention: "la-se" puts LA-SE behind the last stage; "none" leaves it out.
        gate: of LA-SE: "sigmoid" for weights that were trained with it; "2*sigmoid" is 1 where LA-SE is new, so that it
            changes nothing before it is trained.
        reduction: channels of the last stage over hidden ones of LA-SE.
    """

    units: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    dim: int = 512
    attention: str = "la-se"
    gate: str = "2*sigmoid"
    reduction: int = 16

    @classmethod
    def read(cls, content: Mapping[str, Any], folder: object) -> "IResNetConfig":
        """Read the content of a config.json.

        Raises:
            BackboneError: a value is missing or cannot be used.
        """
        allowed = {
            "units": _four_numbers(content.get("units")),
            "widths": _four_numbers(content.get("widths")),
            "dim": _number(content.get("dim")),
            "reduction": _number(content.get("reduction")),
            "attention": content.get("attention") in ATTENTIONS,
            "gate": content.get("gate") in GATES,
        }
        for name, fits in allowed.items():
            if not fits:
                raise BackboneError(
                    f"{folder}/config.json: {name} is {content.get(name)!r}; units and widths are four numbers, dim "
                    f"and reduction one, attention is {' or '.join(ATTENTIONS)}, and gate {' or '.join(GATES)}; `emi "
                    "import-weights` writes the file"
                )
        read: dict[str, Any] = {name: content[name] for name in allowed}
        return cls(**read | {name: tuple(read[name]) for name in ("units", "widths")})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json."""
        return {"model_type": MODEL_TYPE, **asdict(self)}


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _four_numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_number, value))
