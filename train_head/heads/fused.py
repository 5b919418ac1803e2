"""Several streams, or targets per row: an encoder per stream, and a fusion of what they give."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from train_head.data.streams import Rows
from train_head.heads.encoder import Encoder


class FusedHead(nn.Module):
    """Encoders → a vector per stream → fusion.

    The vector is a clip's summary or, for targets per row, the state that holds at each reference row. Where a clip or
    a reference row has nothing of a stream, a learned vector stands for it.

    Args:
        encoders: by the stream's name.
        make_fusion: makes the layers that join the streams from the sizes of their vectors.
        rows: predict every reference row instead of the clip.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], make_fusion: Callable[[Mapping[str, int]], nn.Module], *, rows: bool
    ) -> None:
        super().__init__()
        self.rows = rows
        for encoder in encoders.values():
            encoder.wants_states = rows
        self.encoders = nn.ModuleDict(encoders)
        widths = {name: e.state_width if rows else e.summary_width for name, e in encoders.items()}
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})
        self.fusion = make_fusion(widths)

    def forward(self, streams: Mapping[str, Rows]) -> Tensor:
        """Predict a batch: (batch, targets), or (batch, reference rows, targets)."""
        vectors = {name: self._vector(name, streams[name]) for name in self.encoders}
        out: Tensor = self.fusion(vectors)
        return out

    def _vector(self, name: str, rows: Rows) -> Tensor:
        """(batch, width) summaries, or (batch, reference rows, width) states, of one stream."""
        encoder, missing = cast(Encoder, self.encoders[name]), self.missing[name]
        encoded = encoder(rows.frames, rows.lengths.clamp(min=1), rows.valid)
        if not self.rows:
            return torch.where(rows.lengths[:, None] > 0, encoded.summary, missing.to(encoded.summary.dtype))
        assert rows.at is not None
        assert encoded.states is not None
        return states_at(encoded.states, rows.at, encoder.stride, missing)


def states_at(states: Tensor, at: Tensor, stride: int, missing: Tensor) -> Tensor:
    """Take the state that holds at each reference row.

    Args:
        states: (batch, steps, width).
        at: (batch, reference rows) int64 row numbers, −1 where no row holds.
        stride: rows per state.
        missing: (width,) stands where no row holds.

    Returns:
        (batch, reference rows, width).
    """
    step = at.clamp(min=0).div(stride, rounding_mode="floor").unsqueeze(-1)
    found = states.gather(1, step.expand(-1, -1, states.shape[2]))
    return torch.where((at >= 0).unsqueeze(-1), found, missing.to(states.dtype))


class Alone(nn.Module):
    """The regressor of a head on the vectors of the only stream."""

    def __init__(self, regressor: nn.Module) -> None:
        super().__init__()
        self.regressor = regressor

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(..., width) of one stream → (..., targets)."""
        (vector,) = vectors.values()
        out: Tensor = self.regressor(vector)
        return out
