"""Fusions by name: modules that map what they read of every stream to one value per target, of a clip or of its rows.

To add a fusion, write a file like `concat.py` and add its line here; `tests/train_head/heads/test_every_fusion.py` then
holds it to what every fusion promises.
"""

from collections.abc import Mapping
from typing import Any

from train_head.heads.fusions.alone import Alone
from train_head.heads.fusions.concat import ConcatFusion
from train_head.heads.fusions.crossattention import CrossAttentionFusion
from train_head.heads.fusions.fusion import Fusion, Part, Reading
from train_head.heads.fusions.late import LateFusion
from train_head.heads.fusions.transformer import TransformerFusion
from train_head.heads.options import resolve_options

FUSIONS: dict[str, type[Fusion]] = {
    "concat": ConcatFusion,
    "late": LateFusion,
    "crossattention": CrossAttentionFusion,
    "transformer": TransformerFusion,
}
DEFAULT_FUSION = "concat"

__all__ = ["DEFAULT_FUSION", "FUSIONS", "Alone", "Fusion", "Part", "Reading", "fusion_options"]


def fusion_options(name: str, options: Mapping[str, Any]) -> Any:
    """Check the options of a fusion and fill in their defaults.

    Raises:
        TrainSettingsError: unknown fusion or option, or a value out of range.
    """
    return resolve_options("fusion", name, options, FUSIONS)
