"""Heads by name: modules that map (batch, frames, dim) features and their lengths to (batch, targets).

Padded frames and neighbours in a batch never change a clip's result. To add a head, write a file like `mean.py`, add
its import, its line in `HEADS` and its name in `__all__` here, and name it in the help of `TrainSettings.head`;
`tests/train_head/heads/test_every_head.py` then tests it with the others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from train_head.errors import TrainSettingsError, refuse, unknown
from train_head.heads.attention import AttentionHead
from train_head.heads.bilstm import BilstmHead
from train_head.heads.encoder import Encoder
from train_head.heads.fused import Alone, FusedHead
from train_head.heads.fusions import FUSIONS, build_fusion
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
SUMMARY_ONLY = ("mean", "mlp", "attention")
"""Heads without a state per row: they cannot serve targets per frame."""

__all__ = [
    "ENCODERS",
    "FUSIONS",
    "HEADS",
    "AttentionHead",
    "BilstmHead",
    "Encoder",
    "FusedHead",
    "GruHead",
    "Head",
    "HierarchicalHead",
    "LstmHead",
    "MeanHead",
    "MlpHead",
    "SequenceHead",
    "TcnHead",
    "TransformerHead",
    "build_fused",
    "build_head",
    "head_options",
]


def head_options(name: str, options: Mapping[str, Any]) -> Any:
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


def check_states(names: Iterable[str]) -> None:
    """Refuse heads that cannot predict every row.

    Raises:
        TrainSettingsError: one has no state per row; names those that have.
    """
    refuse(*((name in SUMMARY_ONLY, _no_states(name)) for name in names))


def _no_states(name: str) -> str:
    able = ", ".join(known for known in HEADS if known not in SUMMARY_ONLY)
    what = f"the head {name!r} summarises a clip and has no state per row"
    return f"{what}, which targets per frame need; take one of {able}"


def build_head(name: str, options: Mapping[str, Any], dim: int, targets: int) -> Head:
    """Make a head with fresh weights for (batch, rows, dim) features of one stream.

    Args:
        name: a key of `HEADS`.
        options: those that are given; the others take their defaults.
        dim: size of a row.
        targets: values that are predicted.
    """
    resolved = head_options(name, options)
    return HEADS[name](dim, targets, resolved)


def build_fused(
    heads: Mapping[str, tuple[str, Mapping[str, Any]]],
    fusion: tuple[str, Mapping[str, Any]],
    dims: Mapping[str, int],
    targets: int,
    *,
    rows: bool,
) -> FusedHead:
    """Make what predicts from several streams, or every row of one, with fresh weights.

    Of one stream, the regressor is that of its head; of several, the fusion has one.

    Args:
        heads: by stream, a key of `HEADS` and its options.
        fusion: a key of `FUSIONS` and its options.
        dims: by stream, size of a row.
        targets: values that are predicted.
        rows: predict every row of the reference clock instead of the clip.

    Raises:
        TrainSettingsError: an unknown name or option, or a head that has no state per row where these are predicted.
    """
    options = {stream: head_options(name, given) for stream, (name, given) in heads.items()}
    encoders = {stream: ENCODERS[name](dims[stream], options[stream]) for stream, (name, _) in heads.items()}
    for stream, (name, _) in heads.items():
        if rows and not encoders[stream].state_width:
            raise TrainSettingsError(_no_states(name))
    if len(heads) > 1:
        return FusedHead(encoders, lambda widths: build_fusion(*fusion, widths, targets), rows=rows)
    ((stream, (name, _)),) = heads.items()
    return FusedHead(
        encoders,
        lambda widths: Alone(HEADS[name].make_regressor(widths[stream], targets, options[stream])),
        rows=rows,
    )
