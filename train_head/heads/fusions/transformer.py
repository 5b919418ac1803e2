"""A transformer over the states of all streams at one clock, as for valence and arousal in arXiv 2403.12425."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train_head.heads.fusions.fusion import Fusion, Part, Reading, Regressor, Widths, any_present
from train_head.heads.options import HeadOptions, check_multiple
from train_head.heads.regressor import OUTPUTS, one_layer
from train_head.heads.self_attention import with_cheap_dropout
from train_head.heads.transformer import sinusoids


@dataclass(frozen=True, kw_only=True)
class TransformerFusionOptions(HeadOptions):
    """Settings of `TransformerFusion`; the defaults are those of the public code of that lineage.

    Attributes:
        width_in: size of the layer behind the joined states.
        slope: of the LeakyReLU behind that layer, where its input is negative.
        hidden: size of a position in the encoder, a multiple of `heads`; 0 takes `width_in`.
        layers: encoder layers.
        heads: attention heads per layer.
        width: size of the feed-forward layers; 0 takes four times `hidden`.
        positions: add sinusoidal positions, without which the encoder does not know the order of rows.
        dropout: in the encoder layers.
        per_target: give each target two layers of its own, Linear → LeakyReLU → Linear, instead of one linear layer for
            all (one linear layer per target would be the same as one for all).
        output: "linear", "tanh" or "sigmoid".
    """

    width_in: int = 256
    slope: float = 0.1
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    positions: bool = False
    dropout: float = 0.3
    per_target: bool = False
    output: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("hidden", self.hidden or self.width_in, self.heads)


class TransformerFusion(Fusion):
    """States at the reference clock side by side → Linear → LeakyReLU → Linear → post-norm layers → Linear per row.

    A reference row at which no stream has anything is never attended to.
    """

    Options = TransformerFusionOptions
    row_by_row = False
    by_times = True

    def __init__(self, widths: Widths, targets: int, options: TransformerFusionOptions, regressor: Regressor) -> None:
        super().__init__(widths, targets, options, regressor)
        hidden = options.hidden or options.width_in
        self.positions = options.positions
        self.project = nn.Sequential(
            nn.Linear(sum(widths.values()), options.width_in),
            nn.LeakyReLU(options.slope),
            nn.Linear(options.width_in, hidden),
        )
        layer = nn.TransformerEncoderLayer(
            hidden, options.heads, options.width or 4 * hidden, options.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(with_cheap_dropout(layer), options.layers, enable_nested_tensor=False)
        self.regressor: nn.Module = (
            PerTarget(hidden, targets, options)
            if options.per_target
            else one_layer(hidden, targets, 0.0, options.output)
        )

    @classmethod
    def reads(
        cls,
        streams: Sequence[str],
        options: TransformerFusionOptions,  # noqa: ARG003
        *,
        rows: bool,  # noqa: ARG003
    ) -> dict[str, Reading]:
        """See `Fusion`: states at the reference clock, for targets per clip too."""
        return dict.fromkeys(streams, Reading.AT_CLOCK)

    def forward(self, parts: Mapping[str, Part]) -> Tensor:
        """See `Fusion`."""
        rows = self.project(torch.cat([part.vectors for part in parts.values()], dim=-1))
        if self.positions:
            rows = rows + sinusoids(rows.shape[1], rows.shape[2], rows)
        out: Tensor = self.regressor(self.encoder(rows, src_key_padding_mask=~any_present(parts)))
        return out


class PerTarget(nn.Module):
    """Linear → LeakyReLU → Linear → output for each target."""

    def __init__(self, width: int, targets: int, options: TransformerFusionOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.LeakyReLU(options.slope), nn.Linear(width, 1), OUTPUTS[options.output]()
            )
            for _ in range(targets)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """(batch, rows, width) → (batch, rows, targets)."""
        return torch.cat([layers(rows) for layers in self.layers], dim=-1)
