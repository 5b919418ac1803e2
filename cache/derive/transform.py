"""Features made of features: means of consecutive frames, principal components, unit variance; NumPy only.

A `Transform` is what makes a small cache of a large one (`cache.derive.derived`). It works clip by clip, so that
prediction can apply the same to a clip that no cache holds. Once it is fitted, no clip's numbers depend on another's.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheFormatError, DeriveError
from cache.format import Array, Clip

BLOCK_FRAMES = 2048
"""Frames whose moments are taken at once while fitting: enough for a fast matrix product, 16 MB of float64 at 1024."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """Pool, then project on principal components, then divide by the standard deviation.

    Attributes:
        pool: consecutive frames whose mean is one frame; a last window that is not full is the mean of what is there.
        mean: (dim,) float64 of the pooled training frames, or None where nothing was fitted.
        components: (k, dim) float64, orthonormal, by falling variance, or None for all dimensions as they are.
        scale: (k or dim,) float64 standard deviations after the projection, or None.
        fitted_on: {"clips": number, "sha256": `training_set` of the clips} or None.
    """

    pool: int = 1
    mean: Floats | None = None
    components: Floats | None = None
    scale: Floats | None = None
    fitted_on: Mapping[str, Any] | None = None

    def apply(self, clip: Clip) -> Clip:
        """Transform one clip.

        Args:
            clip: frames (T, dim), vad (T, 3) or None.

        Returns:
            frames (ceil(T / pool), k or dim) float32 and vad (ceil(T / pool), 3) float32; the rest unchanged.

        Raises:
            CacheFormatError: the frames have another dimension than those this was fitted on.
        """
        if self.mean is not None and clip.frames.shape[1] != len(self.mean):
            raise CacheFormatError(
                f"clip {clip.id!r} has {clip.frames.shape[1]} features per frame, and the transform was fitted on "
                f"{len(self.mean)}; give it features of the cache it was made from"
            )
        vad = None if clip.vad is None else pooled(clip.vad, self.pool)
        return replace(clip, frames=self._projected(pooled(clip.frames, self.pool)), vad=vad)

    def _projected(self, frames: Array) -> Array:
        """(T, dim) float32 -> (T, k or dim) float32; the products are float64."""
        if self.mean is None:
            return frames
        values = frames - self.mean
        if self.components is not None:
            values = values @ self.components.T
        if self.scale is not None:
            values /= self.scale
        return values.astype(np.float32)

    @classmethod
    def fit(
        cls, clips: Iterable[Clip], pool: int = 1, pca: int | None = None, standardise: bool = False
    ) -> "Transform":
        """Fit in one pass over the training clips; the pass is left out where nothing is to be fitted.

        Args:
            clips: each with frames (T, dim).
            pool: frames per window.
            pca: number of principal components, or None.
            standardise: whether to bring each output to unit variance (divisor n, as scikit-learn's StandardScaler).

        Raises:
            DeriveError: fewer dimensions or pooled frames than components, or no clips; says what to give.
        """
        if pca is None and not standardise:
            return cls(pool)
        moments, members = _Moments(cross=pca is not None), {}
        for clip in clips:
            members[clip.id] = clip.checksum()
            moments.add(pooled(clip.frames, pool))
        count, mean, variance = moments.result()
        _check_enough(count, len(mean), len(members), pca)
        components = None
        if pca is not None:
            components, variance = _principal(variance, pca)
            floor = len(mean) * np.finfo(np.float64).eps * variance[:1]  # below it, eigenvalues are rounding errors
        else:
            floor = np.square(1e-12 * mean)  # below it, the variance of a constant is
        scale = np.sqrt(np.where(variance <= floor, 1.0, variance)) if standardise else None
        return cls(pool, mean, components, scale, {"clips": len(members), "sha256": training_set(members)})

    def to_arrays(self) -> dict[str, Array]:
        """What was fitted, by name: plain float64 arrays, none where nothing was."""
        arrays = {"mean": self.mean, "components": self.components, "scale": self.scale}
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> "Transform":
        """Put a transform together again.

        Args:
            arrays: as from `to_arrays`; others are ignored.
            settings: `pool`, `standardise`, and `pca` and `fitted_on` where there are some: a recipe of `derived`.

        Raises:
            CacheFormatError: an array is missing, or its shape does not fit.
        """
        pca, standardise = settings.get("pca"), settings["standardise"]
        wanted = {"mean": pca is not None or standardise, "components": pca is not None, "scale": standardise}
        found = {name: np.asarray(arrays[name], np.float64) for name, used in wanted.items() if used and name in arrays}
        dim = len(found["mean"]) if "mean" in found else None
        outputs = dim if pca is None else pca
        shapes = {"mean": (dim,), "components": (pca, dim), "scale": (outputs,)}
        for name in (name for name, used in wanted.items() if used):
            if name not in found or found[name].shape != shapes[name] or not np.isfinite(found[name]).all():
                raise CacheFormatError(
                    f"the transform of these features is incomplete: its {name} is missing or not of shape "
                    f"{shapes[name]}; make the cache again with `emi cache derive`"
                )
        return cls(settings["pool"], **found, fitted_on=settings.get("fitted_on"))


def training_set(checksums: Mapping[str, int]) -> str:
    """SHA-256, as hex, that names a set of clips: their sorted ids, each with its CRC-32C."""
    text = "".join(f"{clip_id}\0{checksums[clip_id]:08x}\n" for clip_id in sorted(checksums))
    return hashlib.sha256(text.encode()).hexdigest()


def pooled(frames: Array, pool: int) -> Array:
    """(T, dim) -> (ceil(T / pool), dim) float32 means of consecutive frames; the last of what is there."""
    if pool == 1:
        return np.asarray(frames, np.float32)
    whole = len(frames) - len(frames) % pool
    # a third of the time of np.add.reduceat, which would need no case for the rest
    means: Array = frames[:whole].reshape(-1, pool, frames.shape[1]).mean(1, dtype=np.float32)
    if whole == len(frames):
        return means
    return np.concatenate([means, frames[whole:].mean(0, dtype=np.float32, keepdims=True)])


class _Moments:
    """Count, mean and scatter of frames, block by block in float64.

    Blocks are joined as in Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance": unlike the sum
    of squares less the square of the sum, this loses nothing where the mean is large beside the deviations.

    Args:
        cross: whether the scatter is that of all pairs of dimensions, (dim, dim), or of each, (dim,).
    """

    def __init__(self, *, cross: bool) -> None:
        self._cross = cross
        self._count = 0
        self._mean: Floats = np.zeros(0)
        self._scatter: Floats = np.zeros(0)
        self._waiting: list[Array] = []
        self._rows = 0

    def add(self, frames: Array) -> None:
        """Take (T, dim) frames."""
        self._waiting.append(frames)
        self._rows += len(frames)
        if self._rows >= BLOCK_FRAMES:
            self._join()

    def result(self) -> tuple[int, Floats, Floats]:
        """Count, (dim,) mean, and (dim, dim) covariance or (dim,) variance, with divisor n."""
        if self._rows:
            self._join()
        return self._count, self._mean, self._scatter / max(1, self._count)

    def _join(self) -> None:
        block = np.concatenate(self._waiting).astype(np.float64)
        self._waiting, self._rows = [], 0
        mean = block.mean(0)
        block -= mean
        if not self._count:
            self._count, self._mean, self._scatter = len(block), mean, self._product(block)
            return
        total = self._count + len(block)
        step = mean - self._mean
        between = self._product(step[None]) * (self._count * len(block) / total)
        self._scatter += self._product(block) + between
        self._mean = self._mean + step * (len(block) / total)
        self._count = total

    def _product(self, rows: Floats) -> Floats:
        product: Floats = rows.T @ rows if self._cross else np.square(rows).sum(0)
        return product


def _principal(covariance: Floats, pca: int) -> tuple[Floats, Floats]:
    """(pca, dim) eigenvectors by falling variance, each with its largest loading positive, and (pca,) variances."""
    variances, vectors = np.linalg.eigh(covariance)  # by rising variance, vectors as columns
    components = vectors[:, ::-1][:, :pca].T
    largest = np.abs(components).argmax(1)
    signs = np.sign(components[np.arange(pca), largest])
    return np.ascontiguousarray(components * signs[:, None]), np.maximum(variances[::-1][:pca], 0.0)


def _check_enough(count: int, dim: int, clips: int, pca: int | None) -> None:
    if not count:
        raise DeriveError("there are no training clips to fit on; give --train a CSV that names some of the cache's")
    if pca is not None and pca > dim:
        raise DeriveError(f"--pca {pca}: a frame has {dim} features, and no more components; give at most --pca {dim}")
    if pca is not None and pca > count:
        raise DeriveError(
            f"--pca {pca}: the {clips} training clips have {count} frames after pooling, too few for so many "
            "components; give a smaller --pca or --pool, or more training clips"
        )
