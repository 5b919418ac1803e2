"""Heads by name: modules that map (batch, frames, dim) features and their lengths to (batch, targets).

Padded frames and neighbours in a batch never change a clip's result. To add a head, write a file like `mean.py`, add
its import, its line in `HEADS` and its name in `__all__` here, and name it in the help of `TrainSettings.head`;
`tests/train_head/heads/test_every_head.py` then tests it with the others.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from train_head.errors import TrainSettingsError, refuse
from train_head.heads.attention import AttentionHead
from train_head.heads.bilstm import BilstmHead
from train_head.heads.encoder import Encoder
from train_head.heads.fused import FusedHead
from train_head.heads.fusions import DEFAULT_FUSION, FUSIONS, Alone, Fusion, Reading, fusion_options
from train_head.heads.gru import GruHead
from train_head.heads.head import Head
from train_head.heads.hierarchical import HierarchicalHead
from train_head.heads.lstm import LstmHead
from train_head.heads.mean import MeanHead
from train_head.heads.mlp import MlpHead
from train_head.heads.options import resolve_options
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
SUMMARY_ONLY = tuple(name for name, encoder in ENCODERS.items() if not encoder.gives_states)
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
    return resolve_options("head", name, options, HEADS)


def check_states(names: Iterable[str]) -> None:
    """Refuse heads that cannot predict every row.

    Raises:
        TrainSettingsError: one has no state per row; names those that have.
    """
    refuse(*((name in SUMMARY_ONLY, _no_states(name)) for name in names))


def _no_states(name: str, needed_by: str = "targets per frame need") -> str:
    able = ", ".join(known for known in HEADS if known not in SUMMARY_ONLY)
    return f"the head {name!r} summarises a clip and has no state per row, which {needed_by}; take one of {able}"


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
    clock: str = "",
) -> FusedHead:
    """Make what predicts from several streams, or every row of one, with fresh weights.

    One stream with the default fusion keeps the regressor of its head.

    Args:
        heads: by stream, a key of `HEADS` and its options.
        fusion: a key of `FUSIONS` and its options.
        dims: by stream, size of a row.
        targets: values that are predicted.
        rows: predict every row of the reference clock instead of the clip.
        clock: stream whose rows are the reference clock, where clips are predicted and the fusion reads states at one;
            the first where it is empty.

    Raises:
        TrainSettingsError: an unknown name or option, or a head that has no state per row where these are read.
    """
    options = {stream: head_options(name, given) for stream, (name, given) in heads.items()}
    kind = Alone if len(heads) == 1 and fusion[0] == DEFAULT_FUSION else FUSIONS[fusion[0]]
    joining, streams = fusion_options(*fusion), list(heads)
    reads = kind.reads(streams, joining, rows=rows)
    encoders = {stream: ENCODERS[name](dims[stream], options[stream]) for stream, (name, _) in heads.items()}
    for stream, (name, _) in heads.items():
        if reads[stream] != Reading.SUMMARY and not encoders[stream].state_width:
            reader = "targets per frame need" if rows else f"the fusion {fusion[0]!r} reads of the stream {stream!r}"
            raise TrainSettingsError(_no_states(name, reader))

    def make_fusion(widths: Mapping[str, int]) -> Fusion:
        def regressor(stream: str) -> nn.Module:
            return HEADS[heads[stream][0]].make_regressor(widths[stream], targets, options[stream])

        return kind(widths, targets, joining, regressor)

    return FusedHead(encoders, reads, make_fusion, rows=rows, clock=clock or streams[0])
