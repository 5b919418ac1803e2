"""Bring every feature to mean 0 and spread 1, as measured over the frames of the training split."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from train_head.errors import TrainSettingsError

BLOCK_ROWS = 512
"""Frames summed at a time: 4 MB of float64 at 1027 features."""


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
