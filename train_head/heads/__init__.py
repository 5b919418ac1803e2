"""Heads by name: modules that map (batch, frames, dim) features and their lengths to (batch, targets).

Padded frames and neighbours in a batch never change a clip's result. To add a head, write a file like `mean.py` and
add its line here; `tests/train_head/heads/test_every_head.py` then holds it to what every head promises.
"""

from dataclasses import fields
from typing import Any

from train_head.errors import TrainSettingsError, unknown
from train_head.heads.attention import AttentionHead
from train_head.heads.bilstm import BilstmHead
from train_head.heads.encoder import Encoder
from train_head.heads.gru import GruHead
from train_head.heads.head import Head
from train_head.heads.hierarchical import HierarchicalHead
from train_head.heads.lstm import LstmHead
from train_head.heads.mean import MeanHead
from train_head.heads.mlp import MlpHead
from train_head.heads.sequence import SequenceHead
from train_head.heads.tcn import TcnHead
from train_head.heads.transformer import TransformerHead

HEADS: dict[str, type[Head]] = {
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

ENCODERS: dict[str, type[Encoder]] = {name: head.Encoder for name, head in HEADS.items()}
"""The parts of the heads that read a stream, which a fusion joins; they take the options of the head of their name."""

__all__ = [
    "ENCODERS",
    "HEADS",
    "AttentionHead",
    "BilstmHead",
    "Encoder",
    "GruHead",
    "Head",
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
    if name not in HEADS:
        raise TrainSettingsError(unknown("head", name, HEADS))
    kind = HEADS[name].Options
    known = [field.name for field in fields(kind)]
    for key in options:
        if key not in known:
            raise TrainSettingsError(unknown(f"option of head {name!r}", key, known))
    return kind(**options)


def build_head(name: str, options: dict[str, Any], dim: int, targets: int, *, rows: bool = False) -> Head:
    """Make a head with fresh weights for (batch, rows, dim) features.

    Args:
        name: a key of `HEADS`.
        options: those that are given; the others take their defaults.
        dim: size of a row.
        targets: values that are predicted.
        rows: predict every row instead of the clip.
    """
    resolved = head_options(name, options)
    return HEADS[name](dim, targets, resolved, rows=rows)
