"""Cross-attention: one stream queries the others, as text queries audio and video in TAEMI (2026)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.errors import check_known
from train_head.heads.fusions.fusion import Fusion, Part, Reading, Regressor, Widths
from train_head.heads.options import HeadOptions, check_multiple
from train_head.heads.regressor import two_layers


@dataclass(frozen=True, kw_only=True)
class CrossAttentionOptions(HeadOptions):
    """Settings of `CrossAttentionFusion`; the defaults are TAEMI's.

    Attributes:
        query: name of the stream that queries the others; the first where it is empty.
        heads: attention heads.
        width: size of what is attended to in each other stream, a multiple of `heads`.
        hidden: size of the layer behind the joined vectors; 0 takes their size.
        activation: "tanh", "relu" or "gelu", behind that layer.
        dropout: of the attention weights, and before both layers.
        output: "linear", "tanh" or "sigmoid".
    """

    query: str = ""
    heads: int = 4
    width: int = 512
    hidden: int = 512
    activation: str = "gelu"
    dropout: float = 0.1
    output: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("width", self.width, self.heads)


class CrossAttentionFusion(Fusion):
    """[summary of one stream, attention of it over the states of each other] → Linear → activation → Linear.

    For targets per row, the states of that stream at the reference clock are the queries.
    """

    Options = CrossAttentionOptions
    row_by_row = False

    def __init__(self, widths: Widths, targets: int, options: CrossAttentionOptions, regressor: Regressor) -> None:
        super().__init__(widths, targets, options, regressor)
        self.query, size = options.query or next(iter(widths)), options.width
        self.project = nn.Linear(widths[self.query], size)
        self.attention = nn.ModuleDict(
            {
                name: nn.MultiheadAttention(size, options.heads, options.dropout, kdim=w, vdim=w, batch_first=True)
                for name, w in widths.items()
                if name != self.query
            }
        )
        width = widths[self.query] + size * len(self.attention)
        self.regressor = two_layers(
            width, options.hidden or width, targets, options.dropout, options.output, options.activation
        )

    @classmethod
    def reads(cls, streams: Sequence[str], options: CrossAttentionOptions, *, rows: bool) -> dict[str, Reading]:
        """See `Fusion`."""
        query = options.query or streams[0]
        check_known("stream in fusion.query", [query], streams)
        return dict.fromkeys(streams, Reading.STATES) | {query: Reading.AT_CLOCK if rows else Reading.SUMMARY}

    def forward(self, parts: Mapping[str, Part]) -> Tensor:
        """See `Fusion`."""
        own = parts[self.query].vectors
        queries = self.project(own if own.ndim == 3 else own.unsqueeze(1))  # (batch, 1 or reference rows, width)
        joined = [own]
        for name, attention in self.attention.items():
            states, ignored = parts[name].vectors, ~parts[name].present
            found = attention(queries, states, states, key_padding_mask=ignored, need_weights=False)[0]
            joined.append(found.view(*own.shape[:-1], -1))
        out: Tensor = self.regressor(torch.cat(joined, dim=-1))
        return out
