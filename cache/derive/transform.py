"""Features made of features: means and spreads of consecutive frames, principal components, unit variance; NumPy only.

A `Transform` is what makes a small cache of a large one (`cache.derive.derived`). It works clip by clip, so that
prediction can apply the same to a clip that no cache holds. Once it is fitted, no clip's numbers depend on another's.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheFormatError, DeriveError
from cache.format import Array, Clip

STATS = ("mean", "std")
"""What may be taken of consecutive frames."""
BLOCK_FRAMES = 2048
"""Frames whose moments are taken at once while fitting: enough for a fast matrix product, 16 MB of float64 at 1024."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """Pool, then project on principal components, then divide by the standard deviation.

    Attributes:
        pool: consecutive frames that become one frame; a last window that is not full is made of what is there.
        stats: of `STATS`, what is taken of them, side by side.
        mean: (dim,) float64 of the pooled training frames, or None where nothing was fitted.
        components: (k, dim) float64, orthonormal, by falling variance, or None for all dimensions as they are.
        scale: (k or dim,) float64 standard deviations after the projection, or None.
    """

    pool: int = 1
    stats: tuple[str, ...] = STATS[:1]
    mean: Floats | None = None
    components: Floats | None = None
    scale: Floats | None = None

    def apply(self, clip: Clip) -> Clip:
        """Transform one clip.

        Args:
            clip: frames (T, dim), vad (T, 3) or None, times (T, 2) or None, valid (T,) or None.

        Returns:
            frames (ceil(T / pool), k or dim times stats) float32 and vad (ceil(T / pool), 3) float32, over the valid
            frames of each window (of VAD the means); a window is valid if one of its frames is, and lasts from its
            first frame's start to its last frame's end; the rest unchanged.

        Raises:
            CacheFormatError: the frames have another dimension than those this was fitted on.
        """
        if self.mean is not None and clip.frames.shape[1] * len(self.stats) != len(self.mean):
            raise CacheFormatError(
                f"clip {clip.id!r} has {clip.frames.shape[1]} features per frame, and the transform was fitted on "
                f"{len(self.mean) // len(self.stats)}; give it features of the cache it was made from"
            )
        frames = pooled(clip.frames, self.pool, clip.valid, self.stats)
        if self.mean is not None:
            values = frames - self.mean  # float64
            if self.components is not None:
                values = values @ self.components.T
            frames = (values if self.scale is None else values / self.scale).astype(np.float32)
        starts = np.arange(0, len(clip.frames), self.pool)
        return replace(
            clip,
            frames=frames,
            vad=None if clip.vad is None else pooled(clip.vad, self.pool, clip.valid),
            times=None if clip.times is None else _spans(clip.times, starts),
            valid=None if clip.valid is None else np.logical_or.reduceat(clip.valid, starts),
        )

    @classmethod
    def fit(
        cls,
        clips: Iterable[Clip],
        pool: int = 1,
        pca: int | None = None,
        standardise: bool = False,
        stats: tuple[str, ...] = STATS[:1],
    ) -> "Transform":
        """Fit in one pass over the training clips; the pass is left out where nothing is to be fitted.

        Args:
            clips: each with frames (T, dim).
            pool: frames per window.
            pca: number of principal components, or None.
            standardise: whether to bring each output to unit variance (divisor n, as scikit-learn's StandardScaler).
            stats: of `STATS`, what is taken of each window.

        Raises:
            DeriveError: fewer dimensions or pooled frames than components, or no clips; says what to give.
        """
        if pca is None and not standardise:
            return cls(pool, stats)
        count, mean, variance = _moments((_valid_rows(clip, pool, stats) for clip in clips), cross=pca is not None)
        if not count:
            raise DeriveError(
                "there are no training clips to fit on; give --train a CSV that names some of the cache's"
            )
        if pca is not None and pca > len(mean):
            raise DeriveError(
                f"--pca {pca}: a frame has {len(mean)} features, and no more components; give at most --pca {len(mean)}"
            )
        if pca is not None and pca > count:
            raise DeriveError(
                f"--pca {pca}: the training clips have {count} frames after pooling, too few for that number of "
                "components; give a smaller --pca or --pool, or more training clips"
            )
        components = None
        if pca is not None:
            components, variance = _principal(variance, pca)
            floor = len(mean) * np.finfo(np.float64).eps * variance[:1]  # below it, eigenvalues are rounding errors
        else:
            floor = np.square(1e-12 * mean)  # below it, the variance of a constant is
        scale = np.sqrt(np.where(variance <= floor, 1.0, variance)) if standardise else None
        return cls(pool, stats, mean, components, scale)

    def to_arrays(self) -> dict[str, Array]:
        """What was fitted, by name: plain float64 arrays, none where nothing was."""
        arrays = {"mean": self.mean, "components": self.components, "scale": self.scale}
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> "Transform":
        """Put a transform together again.

        Args:
            arrays: as from `to_arrays`; others are ignored.
            settings: `pool`, `standardise`, and `pca` and `pool_stats` where they are: a recipe of `derived`.

        Raises:
            CacheFormatError: an array is missing, or its shape does not fit.
        """
        pca, standardise = settings.get("pca"), settings["standardise"]
        dim = np.size(arrays.get("mean", ()))
        shapes: dict[str, tuple[int, ...]] = {"mean": (dim,)} if pca is not None or standardise else {}
        shapes |= {} if pca is None else {"components": (pca, dim)}
        shapes |= {"scale": (dim if pca is None else pca,)} if standardise else {}
        found = {name: np.asarray(arrays.get(name, ()), np.float64) for name in shapes}
        for name, shape in shapes.items():
            if name not in arrays or found[name].shape != shape or not np.isfinite(found[name]).all():
                raise CacheFormatError(
                    f"the transform of these features is incomplete: its {name} is missing or not of shape {shape}; "
                    "make the cache again with `emi cache derive`"
                )
        return cls(settings["pool"], tuple(settings.get("pool_stats", STATS[:1])), **found)


def training_set(checksums: Mapping[str, int]) -> str:
    """SHA-256, as hex, that names a set of clips: their sorted ids, each with its CRC-32C."""
    text = "".join(f"{clip_id}\0{checksums[clip_id]:08x}\n" for clip_id in sorted(checksums))
    return hashlib.sha256(text.encode()).hexdigest()


def pooled(frames: Array, pool: int, valid: Array | None = None, stats: tuple[str, ...] = STATS[:1]) -> Array:
    """(T, dim) -> (ceil(T / pool), dim times stats) float32 of consecutive frames; the last window of what is there.

    Args:
        frames: those that are not valid are zeros.
        pool: frames of a window.
        valid: (T,) the frames that are taken, or None for all; a window without any is zeros.
        stats: of `STATS`: the mean, the standard deviation (divisor n).
    """
    mean = _means(frames, pool, valid)
    if stats == ("mean",):
        return mean
    apart = frames - np.repeat(mean, pool, axis=0)[: len(frames)]
    if valid is not None:
        apart[~valid] = 0.0
    columns = {"mean": mean, "std": np.sqrt(_means(np.square(apart), pool, valid))}
    return np.concatenate([columns[name] for name in stats], axis=1)


def _means(frames: Array, pool: int, valid: Array | None) -> Array:
    """(T, dim) -> (ceil(T / pool), dim) float32 means of the valid ones of consecutive frames."""
    if valid is not None and pool > 1:
        starts = np.arange(0, len(frames), pool)
        counts = np.maximum(np.add.reduceat(valid, starts, dtype=np.int64), 1)
        return np.asarray(np.add.reduceat(frames, starts, dtype=np.float32) / counts[:, None], np.float32)
    if pool == 1:
        return np.asarray(frames, np.float32)
    whole = len(frames) - len(frames) % pool
    # a third of the time of np.add.reduceat, which would need no case for the rest
    means: Array = frames[:whole].reshape(-1, pool, frames.shape[1]).mean(1, dtype=np.float32)
    if whole == len(frames):
        return means
    return np.concatenate([means, frames[whole:].mean(0, dtype=np.float32, keepdims=True)])


def _spans(times: Array, starts: Array) -> Array:
    """Return from when to when windows of frames last; `starts` are their first frames."""
    return np.stack([times[starts, 0], np.maximum.reduceat(times[:, 1], starts)], axis=1)


def _valid_rows(clip: Clip, pool: int, stats: tuple[str, ...]) -> Array:
    """Return the pooled frames of a clip, without windows in which no frame is valid."""
    frames = pooled(clip.frames, pool, clip.valid, stats)
    if clip.valid is None:
        return frames
    return frames[np.logical_or.reduceat(clip.valid, np.arange(0, len(clip.valid), pool))]


def _moments(arrays: Iterable[Array], *, cross: bool) -> tuple[int, Floats, Floats]:
    """Count, (dim,) mean, and (dim, dim) covariance or (dim,) variance of frames, with divisor n, in float64.

    Blocks are joined as in Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance": unlike the sum
    of squares less the square of the sum, this loses nothing where the mean is large beside the deviations.

    Args:
        arrays: (T, dim) frames.
        cross: whether to multiply all pairs of dimensions, or each with itself.
    """

    def product(rows: Floats) -> Floats:
        return rows.T @ rows if cross else np.square(rows).sum(0)

    count, mean, scatter = 0, np.zeros(1), np.zeros(1)
    for block in _blocks(arrays):
        block_mean = block.mean(0)
        block -= block_mean
        total = count + len(block)
        step = block_mean - mean
        scatter = scatter + (product(block) + product(step[None]) * (count * len(block) / total))
        mean = mean + step * (len(block) / total)
        count = total
    return count, mean, scatter / max(1, count)


def _blocks(arrays: Iterable[Array]) -> Iterator[Floats]:
    """Join arrays of frames until they have `BLOCK_FRAMES`."""
    waiting: list[Array] = []
    rows = 0
    for array in arrays:
        waiting.append(array)
        rows += len(array)
        if rows >= BLOCK_FRAMES:
            yield np.concatenate(waiting).astype(np.float64)
            waiting, rows = [], 0
    if waiting:
        yield np.concatenate(waiting).astype(np.float64)


def _principal(covariance: Floats, pca: int) -> tuple[Floats, Floats]:
    """(pca, dim) eigenvectors by falling variance, each with its largest loading positive, and (pca,) variances."""
    variances, vectors = np.linalg.eigh(covariance)  # by rising variance, vectors as columns
    components = vectors[:, ::-1][:, :pca].T
    largest = np.abs(components).argmax(1)
    signs = np.sign(components[np.arange(pca), largest])
    return np.ascontiguousarray(components * signs[:, None]), np.maximum(variances[::-1][:pca], 0.0)
