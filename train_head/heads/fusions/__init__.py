"""Fusions by name: modules that map a vector per stream, of a clip or of each of its rows, to one value per target.

To add a fusion, write a file like `concat.py` and add its line here; `tests/train_head/heads/test_every_fusion.py` then
holds it to what every fusion promises.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from train_head.errors import TrainSettingsError, unknown
from train_head.heads.fusions.concat import ConcatFusion
from train_head.heads.fusions.fusion import Fusion

FUSIONS: dict[str, type[Fusion]] = {"concat": ConcatFusion}
DEFAULT_FUSION = "concat"

__all__ = ["DEFAULT_FUSION", "FUSIONS", "ConcatFusion", "Fusion", "build_fusion", "fusion_options"]


def fusion_options(name: str, options: Mapping[str, Any]) -> Any:
    """Check the options of a fusion and fill in their defaults.

    Raises:
        TrainSettingsError: unknown fusion or option, or a value out of range.
    """
    if name not in FUSIONS:
        raise TrainSettingsError(unknown("fusion", name, FUSIONS))
    kind = FUSIONS[name].Options
    known = [field.name for field in fields(kind)]
    for key in options:
        if key not in known:
            raise TrainSettingsError(unknown(f"option of fusion {name!r}", key, known))
    return kind(**options)


def build_fusion(name: str, options: Mapping[str, Any], widths: Mapping[str, int], targets: int) -> Fusion:
    """Make a fusion with fresh weights.

    Args:
        name: a key of `FUSIONS`.
        options: those that are given; the others take their defaults.
        widths: size of each stream's vector.
        targets: values that are predicted.
    """
    resolved = fusion_options(name, options)
    return FUSIONS[name](widths, targets, resolved)
