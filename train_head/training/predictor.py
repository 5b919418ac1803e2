"""The module that is trained, saved and used: standardisation, a head, and what its outputs mean."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from train_head.data.label_format import UNIT
from train_head.errors import TrainSettingsError
from train_head.heads import build_head
from train_head.heads.pooling import masked
from train_head.losses import decode, outputs_per_target
from train_head.training.settings import TrainSettings

BLOCK_ROWS = 512
"""Frames summed at a time: 4 MB of float64 at 1027 features."""


class Predictor(nn.Module):
    """(batch, frames, dim) features → standardised → head → (batch, targets) intensities.

    What the loss sees lies on the scale of 0 to 1; intensities lie on that of the labels (`label_range`).

    The cached and the end-to-end mode train this one module; its state dict is `best.safetensors`.

    Args:
        settings: which head, with which options, for which loss.
        dim: features per frame, VAD included.
        targets: columns of the labels.
    """

    def __init__(self, settings: TrainSettings, dim: int, targets: int) -> None:
        super().__init__()
        self.targets = targets
        self._range = settings.label_range
        self.standardise: nn.Module = Standardise(dim) if settings.standardise else nn.Identity()
        outputs = targets * outputs_per_target(settings.loss)
        self.head = build_head(settings.head, dict(settings.head_options), dim, outputs)

    def outputs(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, targets * columns per target) float32: what the loss sees."""
        raw: Tensor = self.head(self.standardise(frames), lengths)
        return raw.float()

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, targets) float32 intensities, not clipped to the labels' range."""
        return self._on_labels_scale(decode(self.outputs(frames, lengths), self.targets))

    @property
    def has_timeline(self) -> bool:
        """Whether the head gives a value per frame."""
        return hasattr(self.head, "per_frame")

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, targets) intensities per frame, of a head that has them; zeros behind a clip's end."""
        values: Tensor = self.head.per_frame(self.standardise(frames), lengths)  # type: ignore[operator]
        intensities = self._on_labels_scale(decode(values.float(), self.targets))
        return intensities if self._range == UNIT else masked(intensities, lengths)

    def _on_labels_scale(self, values: Tensor) -> Tensor:
        if self._range == UNIT:
            return values
        low, high = self._range
        return low + (high - low) * values

    def fit_inputs(self, chunks: Iterable[Tensor]) -> None:
        """Take mean and spread of each feature from the training split's frames, (rows, dim) at a time."""
        if isinstance(self.standardise, Standardise):
            self.standardise.fit(chunks)


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
