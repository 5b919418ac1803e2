"""Attention pooling: learned queries decide which frames of a clip count."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.head import Head
from train_head.heads.options import HeadOptions
from train_head.heads.pooling import masked
from train_head.heads.regressor import two_layers


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(HeadOptions):
    """Settings of `AttentionHead`.

    Attributes:
        hidden: size of the layer behind the pooling; 0 takes the input's size.
        heads: queries, each of which pools the clip in its own way.
        dropout: before the two layers behind the pooling.
        global_vector: whether the time mean of the input stands beside what the queries pooled.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    heads: int = 4
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


class AttentionEncoder(Encoder):
    """softmax over time of row · query / sqrt(dim); the summary is a weighted mean per query.

    With learned queries, linear keys and values add nothing but weights: a key matrix folds into the query, and a value
    matrix into the layer behind the pooling, where it is applied per clip instead of per row.
    """

    gives_states = False

    def __init__(self, dim: int, options: AttentionOptions) -> None:
        super().__init__(dim, options.heads * dim, global_vector=options.global_vector)
        self.queries = nn.Linear(dim, options.heads, bias=False)

    def weights(self, rows: Tensor, inside: Tensor) -> Tensor:
        """(batch, rows, heads) float32: how much each row counts; sums to 1 over a clip, 0 outside the mask."""
        scores = self.queries(rows).float() * rows.shape[2] ** -0.5
        return scores.masked_fill(~inside.unsqueeze(-1), -torch.inf).softmax(dim=1)

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        """See `Encoder`."""
        rows = masked(rows, inside)
        return (self.weights(rows, inside).transpose(1, 2) @ rows).flatten(1), None  # (batch, heads * dim)


class AttentionHead(Head):
    """Attention pooling → concat [time mean of the input, mean per query] → Linear → Tanh → Linear."""

    Options = AttentionOptions
    Encoder = AttentionEncoder

    @staticmethod
    def make_regressor(width: int, targets: int, options: AttentionOptions) -> nn.Module:
        """See `Head`: `hidden` is the size of the layer behind the pooling."""
        dim = width // (options.heads + options.global_vector)
        return two_layers(width, options.hidden or dim, targets, options.dropout, options.output)
