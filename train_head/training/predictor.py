"""The module that is trained, saved and used: standardisation, a head, and what its outputs mean."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from train_head.data.label_format import UNIT
from train_head.data.streams import Rows
from train_head.errors import TrainSettingsError
from train_head.heads import Encoder, FusedHead, Head, build_fused, build_head
from train_head.heads.fusions import DEFAULT_FUSION
from train_head.heads.head import SUMMARY
from train_head.heads.pooling import masked, row_mask
from train_head.losses import decode, outputs_per_target
from train_head.training.settings import TrainSettings

BLOCK_ROWS = 512
"""Frames summed at a time: 4 MB of float64 at 1027 features."""


class Predictor(nn.Module):
    """Rows of every stream → standardised → head → values of the targets, per clip or per label row.

    What the loss sees lies on the scale of 0 to 1; what is predicted lies on that of the labels (`label_range`).

    The cached and the end-to-end mode train this one module; its state dict is `best.safetensors`. Of one stream,
    targets per clip and the default fusion, the head is one of `HEADS`; else it is a `FusedHead`.

    Args:
        settings: which heads and fusion, with which options, for which loss.
        dims: by stream, features per row, VAD included.
        targets: columns of the labels.
        by_frame: predict every label row instead of the clip.
    """

    def __init__(
        self, settings: TrainSettings, dims: Mapping[str, int], targets: int, *, by_frame: bool = False
    ) -> None:
        super().__init__()
        self.targets, self.by_frame = targets, by_frame
        self._range = settings.label_range
        parts = {name: settings.stream(name) for name in dims}
        scaled = {name: Standardise(dims[name]) if part.standardise else nn.Identity() for name, part in parts.items()}
        heads = {name: (part.head, part.head_options) for name, part in parts.items()}
        outputs = targets * outputs_per_target(settings.loss)
        self.head: Head | FusedHead
        self.standardise: nn.Module
        self.auxiliary = nn.ModuleDict()
        if len(dims) == 1 and not by_frame and settings.fusion == DEFAULT_FUSION:
            ((name, dim),) = dims.items()
            self.standardise = scaled[name]
            self.head = build_head(*heads[name], dim, outputs)
        else:
            fusion = settings.fusion, settings.fusion_options
            self.head = build_fused(heads, fusion, dims, outputs, rows=by_frame, clock=settings.clock)
            self.standardise = nn.ModuleDict(scaled)
            if settings.auxiliary and len(dims) > 1:  # made last, so that the head begins with the same weights
                own = {name: nn.Linear(self.head.own_width(name), outputs) for name in dims}
                self.auxiliary = nn.ModuleDict(own)

    def outputs(self, streams: Mapping[str, Rows]) -> Tensor:
        """(…, targets * columns per target) float32: what is decoded, (batch,) or (batch, label rows) of it."""
        raw: Tensor
        if isinstance(self.head, FusedHead):
            raw = self.head(self._scaled(streams))
        else:
            (rows,) = streams.values()
            frames = self.standardise(rows.frames)
            if not rows.lengths.all():  # of nothing: one row of zeros
                frames = masked(frames, rows.inside)
            raw = self.head(frames, rows.lengths.clamp(min=1))
        return raw.float()

    def training_outputs(self, streams: Mapping[str, Rows]) -> Tensor:
        """(…, columns) float32: what the loss sees. `outputs`, then those of each stream's own regressor.

        The latter are NaN where there is nothing of the stream; see `Objective`.
        """
        if not self.auxiliary:
            return self.outputs(streams)
        assert isinstance(self.head, FusedHead)
        together, alone = self.head.with_own(self._scaled(streams), dict(self.auxiliary.items()))
        return torch.cat([together.float(), *(values.float() for values in alone.values())], dim=-1)

    def _scaled(self, streams: Mapping[str, Rows]) -> dict[str, Rows]:
        scaled = cast(nn.ModuleDict, self.standardise)
        return {name: replace(rows, frames=scaled[name](rows.frames)) for name, rows in streams.items()}

    def forward(self, streams: Mapping[str, Rows]) -> Tensor:
        """(batch, targets) or (batch, label rows, targets) float32 values, not clipped to the labels' range."""
        return self._on_labels_scale(decode(self.outputs(streams), self.targets))

    @property
    def reach(self) -> tuple[int, int] | None:
        """Rows before and after its own on which a value per row depends; None for the whole clip."""
        if not isinstance(self.head, FusedHead) or not self.head.fusion.row_by_row:
            return None
        reaches = [cast(Encoder, encoder).reach for encoder in self.head.encoders.values()]
        known = [reach for reach in reaches if reach is not None]
        if len(known) < len(reaches):
            return None
        return max(reach[0] for reach in known), max(reach[1] for reach in known)

    @property
    def needs_clock(self) -> bool:
        """Whether rows of streams are joined by their times, for targets per clip."""
        return isinstance(self.head, FusedHead) and self.head.needs_clock

    @property
    def has_timeline(self) -> bool:
        """Whether the head gives a value per row, whose mean is the clip's."""
        return isinstance(self.head, Head) and self.head.readout != SUMMARY

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, rows, targets) values per row, of a head that has them; zeros behind a clip's end."""
        assert isinstance(self.head, Head)
        values = self.head.per_frame(self.standardise(frames), lengths)
        intensities = self._on_labels_scale(decode(values.float(), self.targets))
        return intensities if self._range == UNIT else masked(intensities, row_mask(intensities, lengths))

    def _on_labels_scale(self, values: Tensor) -> Tensor:
        if self._range == UNIT:
            return values
        low, high = self._range
        return low + (high - low) * values

    def fit_inputs(self, chunks: Mapping[str, Iterable[Tensor]]) -> None:
        """Take mean and spread of each feature from the training split's rows, (rows, dim) at a time, per stream."""
        for name, rows in chunks.items():
            scaled = self.standardise[name] if isinstance(self.standardise, nn.ModuleDict) else self.standardise
            if isinstance(scaled, Standardise):
                scaled.fit(rows)


class Standardise(nn.Module):
    """(frames - mean) / scale per feature; the identity until it is fitted.

    Args:
        dim: features per frame.

    Attributes:
        mean: (dim,) float32.
        scale: (dim,) float32, the population standard deviation; 1 for a feature that never changes.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Measure mean and scale in float64, in one pass over features of any size.

        Blocks of frames are summed one after another and their means and squared deviations merged (Chan, Golub and
        LeVeque 1979), so nothing is lost where a mean is large beside its spread. What counts as constant is what
        scikit-learn's StandardScaler takes for it: a variance that rounding alone explains.

        Args:
            chunks: (rows, dim) float16 or float32 each, of one frame or of millions, on any device.

        Raises:
            TrainSettingsError: no frames, frames of another size, or features that are not finite.
        """
        dim = len(self.mean)
        count, mean, squares = 0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
        for block in _blocks(chunks, dim):
            rows, total = len(block), count + len(block)
            middle = block.mean(dim=0)
            step = middle - mean
            mean += step * (rows / total)
            squares += block.sub_(middle).square_().sum(dim=0) + step.square() * (count * rows / total)
            count = total
        if not count:
            raise TrainSettingsError("there are no frames to standardise by")
        wrong = (~(mean.isfinite() & squares.isfinite())).nonzero().flatten().tolist()
        if wrong:
            raise TrainSettingsError(
                f"{len(wrong)} of {dim} features hold NaN or infinite values (first: feature {wrong[0]}); "
                "look at the cache with `emi cache verify`, and if float16 was too narrow, extract with --dtype float32"
            )
        variance = squares / count
        rounding = torch.finfo(torch.float64).eps * count
        constant = variance <= rounding * variance + (rounding * mean).square()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, variance.sqrt()))

    def forward(self, frames: Tensor) -> Tensor:
        """(batch, frames, dim) → the same shape, laid out in memory as it came."""
        return frames.sub(self.mean).div_(self.scale)


def _blocks(chunks: Iterable[Tensor], dim: int) -> Iterator[Tensor]:
    """The rows of all chunks as (up to `BLOCK_ROWS`, dim) float64 on the CPU; one buffer, overwritten by the next."""
    buffer = torch.empty(BLOCK_ROWS, dim, dtype=torch.float64)
    filled = 0
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != dim:
            raise TrainSettingsError(f"expected frames of (rows, {dim}) to standardise by, got {tuple(chunk.shape)}")
        done = 0
        while done < len(chunk):
            rows = min(len(chunk) - done, BLOCK_ROWS - filled)
            buffer[filled : filled + rows] = chunk[done : done + rows]
            done, filled = done + rows, filled + rows
            if filled == BLOCK_ROWS:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]
