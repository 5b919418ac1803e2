"""Several streams, or targets per row: an encoder per stream, and a fusion of what they give."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from train_head.data.clock import rows_at_clock
from train_head.data.streams import Rows
from train_head.heads.encoder import Encoder
from train_head.heads.fusions.fusion import Fusion, Part, Reading, any_present
from train_head.heads.pooling import never_empty, segment_mask, time_mean


class FusedHead(nn.Module):
    """Encoders → what the fusion reads of each stream → fusion.

    Where a clip or a reference row has nothing of a stream, a learned vector stands for it.

    Args:
        encoders: by the stream's name.
        reads: what the fusion reads of each stream.
        make_fusion: makes the fusion from the sizes of the vectors that it reads.
        rows: predict every reference row instead of the clip.
        clock: whose rows are the reference rows of a fusion that reads states at the clock for targets per clip; these
            are predicted by the mean over the rows.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        reads: Mapping[str, Reading],
        make_fusion: Callable[[Mapping[str, int]], Fusion],
        *,
        rows: bool,
        clock: str,
    ) -> None:
        super().__init__()
        self.rows, self.reads, self.clock = rows, reads, clock
        widths = {}
        for name, encoder in encoders.items():
            encoder.wants_states = reads[name] != Reading.SUMMARY
            widths[name] = encoder.state_width if encoder.wants_states else encoder.summary_width
        self.encoders = nn.ModuleDict(encoders)
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})
        self.fusion = make_fusion(widths)

    @property
    def needs_clock(self) -> bool:
        """Whether rows of several streams are joined by their times."""
        return not self.rows and Reading.AT_CLOCK in self.reads.values()

    def forward(self, streams: Mapping[str, Rows]) -> Tensor:
        """Predict a batch: (batch, targets), or (batch, reference rows, targets)."""
        if self.needs_clock:
            streams = rows_at_clock(streams, self.clock)
        parts = {name: self._part(name, streams[name]) for name in self.encoders}
        values: Tensor = self.fusion(parts)
        return time_mean(values, any_present(parts)) if self.needs_clock else values

    def _part(self, name: str, rows: Rows) -> Part:
        """Encode one stream, and take what the fusion reads of it."""
        encoder, reading = cast(Encoder, self.encoders[name]), self.reads[name]
        encoded = encoder(rows.frames, rows.lengths.clamp(min=1), rows.valid)
        inside = rows.inside
        if reading == Reading.SUMMARY:
            vectors, present = encoded.summary, inside.any(dim=1)
            held = present
        elif reading == Reading.AT_CLOCK:
            assert rows.at is not None
            at = rows.at.clamp(min=0)
            step = at.div(encoder.stride, rounding_mode="floor").unsqueeze(-1)
            vectors = encoded.states.gather(1, step.expand(-1, -1, encoded.states.shape[2]))
            held = (rows.at >= 0) & inside.any(dim=1, keepdim=True)
            present = held & inside.gather(1, at)
        else:
            steps = segment_mask(inside, encoder.stride)
            vectors, present = encoded.states, never_empty(steps)
            held = steps.any(dim=1, keepdim=True)
        return Part(torch.where(held.unsqueeze(-1), vectors, self.missing[name].to(vectors.dtype)), present)
