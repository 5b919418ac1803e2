"""Several streams, or targets per row: an encoder per stream, and a fusion of what they give."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from train_head.data.clock import rows_at_clock
from train_head.data.streams import Rows
from train_head.heads.encoder import Encoded, Encoder
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
        return self.with_own(streams, {})[0]

    def with_own(self, streams: Mapping[str, Rows], own: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict a batch, together and from each stream by itself.

        Args:
            streams: rows of each.
            own: by stream, a regressor on its summary, or on its states where reference rows are predicted.

        Returns:
            What `forward` returns; and by stream, the same from its regressor, NaN where there is nothing of it.
        """
        if self.needs_clock:
            streams = rows_at_clock(streams, self.clock)
        run: Tensor | None = None
        if self.rows and self.fusion.row_by_row:
            streams, run = distinct_rows(streams)
        encoded = {name: self._encode(name, streams[name]) for name in self.encoders}
        parts = {name: self._part(name, streams[name], encoded[name]) for name in self.encoders}
        values: Tensor = self.fusion(parts)
        reading, alone = Reading.AT_CLOCK if self.rows else Reading.SUMMARY, {}
        for name, regressor in own.items():
            vectors, _, present = self._read(name, streams[name], encoded[name], reading)
            alone[name] = torch.where(present.unsqueeze(-1), regressor(vectors), torch.nan)
        if run is not None:
            return _repeated(values, run), {name: _repeated(part, run) for name, part in alone.items()}
        return time_mean(values, any_present(parts)) if self.needs_clock else values, alone

    def own_width(self, name: str) -> int:
        """Size of what a regressor of a stream's own reads."""
        encoder = cast(Encoder, self.encoders[name])
        return encoder.state_width if self.rows else encoder.summary_width

    def _encode(self, name: str, rows: Rows) -> Encoded:
        encoded: Encoded = self.encoders[name](rows.frames, rows.lengths.clamp(min=1), rows.valid)
        return encoded

    def _part(self, name: str, rows: Rows, encoded: Encoded) -> Part:
        """Return what the fusion reads of a stream, with the learned vector where there is nothing of it."""
        vectors, held, present = self._read(name, rows, encoded, self.reads[name])
        return Part(torch.where(held.unsqueeze(-1), vectors, self.missing[name].to(vectors.dtype)), present)

    def _read(self, name: str, rows: Rows, encoded: Encoded, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors of a stream, where they stand for something of it, and `Part.present`."""
        stride, inside = cast(Encoder, self.encoders[name]).stride, rows.inside
        if reading == Reading.SUMMARY:
            there = inside.any(dim=1)
            return encoded.summary, there, there
        assert encoded.states is not None
        if reading == Reading.AT_CLOCK:
            assert rows.at is not None
            at = rows.at.clamp(min=0)
            step = at.div(stride, rounding_mode="floor").unsqueeze(-1)
            vectors = encoded.states.gather(1, step.expand(-1, -1, encoded.states.shape[2]))
            held = (rows.at >= 0) & inside.any(dim=1, keepdim=True)
            return vectors, held, held & inside.gather(1, at)
        steps = segment_mask(inside, stride)
        return encoded.states, steps.any(dim=1, keepdim=True), never_empty(steps)


def distinct_rows(streams: Mapping[str, Rows]) -> tuple[Mapping[str, Rows], Tensor | None]:
    """Leave out reference rows at which every stream holds the row that it held at the one before.

    Labels may be denser than features: of 25 label rows in a second, one is predicted where features are of seconds.

    Returns:
        The streams with fewer reference rows, and (batch, reference rows) int64, which of these stands for each; or the
        streams as they are and None, where no clip has fewer.
    """
    held = torch.stack(
        [rows.at for rows in streams.values() if rows.at is not None]
    )  # (streams, batch, reference rows)
    new = torch.ones_like(held[0], dtype=torch.bool)
    new[:, 1:] = (held[..., 1:] != held[..., :-1]).any(dim=0)
    run = new.cumsum(dim=1) - 1
    count = int(run[:, -1].max()) + 1
    if count == run.shape[1]:
        return streams, None
    place = torch.zeros_like(run[:, :count]).scatter_reduce_(
        1, run, torch.arange(run.shape[1], device=run.device).expand_as(run), "amax"
    )
    return {
        name: replace(rows, at=rows.at.gather(1, place)) for name, rows in streams.items() if rows.at is not None
    }, run


def _repeated(values: Tensor, run: Tensor) -> Tensor:
    """(batch, fewer rows, targets) → (batch, reference rows, targets)."""
    return values.gather(1, run.unsqueeze(-1).expand(-1, -1, values.shape[2]))
