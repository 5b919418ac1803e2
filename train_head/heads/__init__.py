"""Heads by name: modules that map (batch, frames, dim) features and their lengths to (batch, targets).

Padded frames and neighbours in a batch never change a clip's result. To add a head, write a file like `mean.py`, add
its import, its line in `HEADS` and its name in `__all__` here, and name it in the help of `TrainSettings.head`;
`tests/train_head/heads/test_every_head.py` then tests it with the others.
"""

from dataclasses import fields
from typing import Any

from torch import nn

from train_head.errors import check_known
from train_head.heads.mean import MeanHead
from train_head.heads.residual import TcnHead, TransformerHead
from train_head.heads.rnn import BilstmHead, GruHead, HierarchicalHead, LstmHead, SequenceHead
from train_head.heads.unordered import AttentionHead, MlpHead

HEADS: dict[str, type[nn.Module]] = {
    "lstm": LstmHead,
    "mean": MeanHead,
    "mlp": MlpHead,
    "gru": GruHead,
    "bilstm": BilstmHead,
    "attention": AttentionHead,
    "tcn": TcnHead,
    "transformer": TransformerHead,
    "hierarchical": HierarchicalHead,
    "sequence": SequenceHead,
}

__all__ = [
    "HEADS",
    "AttentionHead",
    "BilstmHead",
    "GruHead",
    "HierarchicalHead",
    "LstmHead",
    "MeanHead",
    "MlpHead",
    "SequenceHead",
    "TcnHead",
    "TransformerHead",
    "build_head",
    "head_options",
]


def head_options(name: str, options: dict[str, Any]) -> Any:
    """Check the options of a head and fill in their defaults.

    Raises:
        TrainSettingsError: unknown head or option, or a value out of range.
    """
    check_known("head", [name], HEADS)
    kind: Any = HEADS[name].Options  # type: ignore[attr-defined]
    check_known(f"option of head {name!r}", options, [field.name for field in fields(kind)])
    return kind(**options)


def build_head(name: str, options: dict[str, Any], dim: int, targets: int) -> nn.Module:
    """Return a head with fresh weights for (batch, frames, dim) features."""
    resolved = head_options(name, options)
    return HEADS[name](dim, targets, resolved)
