"""Every backbone family on the device beside the CPU in float32, from files through the cache and back.

What to expect follows from the arithmetic. A number that is rounded to p bits is off by at most u = 2^-p of itself:
2^-24 in float32, 2^-11 in TF32 and float16, 2^-8 in bfloat16. On the way to a frame, P products of matrices come one
after the other. Each rounds its inputs, and such errors add up as their root: u √P of the frame's norm. In float32
itself, sums of up to K terms are taken in another order, and each term rounds: 2^-24 √(P K). A frame may be off by
`MARGIN` times that. A mask that is wrong is 0.3 off and more, and TF32 where float32 was asked for about 1e-3.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._material import TINY
from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.material import FAMILIES, LAYERS, audeering, checkpoint, voices
from cache import CacheWriter, Clip, open_cache
from extract.audio.modality import AUDIO
from extract.backbones import Identity, identify
from extract.clips import load_extractor
from extract.plan import make_header, windows
from extract.settings import ExtractSettings
from extract.sources import find_media
from extract.stats import PipelineStats

ROUNDING = {"fp32": 0.0, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""u of the inputs of products, beside that of float32."""
MARGIN = 3.0
LONGEST_SUM = 8192
"""K: terms of the positional convolution, 128 taps of 64 channels."""
CONVOLUTIONS, PRODUCTS_PER_LAYER, SILERO_PRODUCTS = 7, 4, 16
"""P: the front end, projection and positions, and of each layer query and key, value and output, up, down. Of silero
the transform, four convolutions, the LSTM's input, and about ten steps that it remembers."""
HEAD_SPREAD = 4.0
"""The regression head maps a frame of 1024 numbers to 3, each of which may be off by so many times as much."""
SECONDS = (0.025, 0.064, 0.3, 1.0, 2.5, 4.0, 5.5, 7.0, 7.0, 9.5, 12.0, 12.5)
QUICK_SECONDS = (0.025, 0.064, 0.3, 0.41)
SHORTEST = 0.01
"""As the bound of a batch: every clip alone."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A backbone.

    Attributes:
        name: of its family.
        source: name or folder.
        products: P.
        longest_sum: K.
    """

    name: str
    source: str
    products: int
    longest_sum: int = LONGEST_SUM

    def tolerance(self, mode: str) -> float:
        """Of a frame's error, in its norm."""
        rounded = ROUNDING[mode] * self.products**0.5
        return MARGIN * (rounded + 2.0**-24 * (self.products * self.longest_sum) ** 0.5)


def measure(setup: Setup, tell: Tell) -> None:
    """Tell a row per family and kind of arithmetic."""
    clips = voices(setup.folder / "clips", QUICK_SECONDS if setup.quick else SECONDS)
    for case in cases(setup):
        identity = identify(case.source)
        alone = ExtractSettings(
            backbone=case.source, device="cpu", precision="fp32", dtype="float32", batch_seconds=SHORTEST
        )
        exact = extracted(setup.folder / f"{case.name}.zarr", clips, identity, alone)
        for mode in modes(setup.device, identity):
            precision = "fp32" if mode == "tf32" else mode
            settings = replace(alone, device=setup.device, precision=precision, batch_seconds=None)
            cache = setup.folder / f"{case.name}, {mode}.zarr"
            found = extracted(cache, clips, identity, settings, rounded=mode == "tf32")
            row = compare(exact, found, case.tolerance(mode))
            tell({"name": f"{case.name}, {mode}", "clips": len(exact)} | row)


def cases(setup: Setup) -> Iterator[Case]:
    """The backbones, made one after the other."""
    layers = TINY["num_hidden_layers"] if setup.quick else 12
    yield Case(name="audEERING's shape", source=str(audeering(setup)), products=_products(layers))
    layers = TINY["num_hidden_layers"] if setup.quick else LAYERS
    for family in FAMILIES:
        yield Case(name=family, source=str(checkpoint(setup, family)), products=_products(layers))
    yield Case(name="silero", source="silero", products=SILERO_PRODUCTS, longest_sum=384)


def _products(layers: int) -> int:
    return CONVOLUTIONS + 2 + PRODUCTS_PER_LAYER * layers


def modes(device: str, identity: Identity) -> list[str]:
    """Kinds of arithmetic that a backbone has on a device; TF32 is a GPU's."""
    return ["fp32", *(["tf32"] if device == "cuda" else []), *(p for p in identity.precisions if p != "fp32")]


def extracted(
    cache: Path, clips: Path, identity: Identity, settings: ExtractSettings, *, rounded: bool = False
) -> dict[str, Clip]:
    """Clips by id, decoded, computed, written into a cache and read again as an extraction does."""
    extractor = load_extractor(identity, settings, settings.precision)
    with tf32(rounded), CacheWriter(cache, make_header(identity, settings, settings.precision)) as writer:
        sources = windows(find_media(clips), AUDIO, settings.max_seconds)
        for clip, _, failure in extractor.fill(sources, writer, PipelineStats(), ()):
            if failure is not None:
                raise RuntimeError(f"{cache.stem}: clip {clip} {failure.reason}")
    with open_cache(cache) as store:
        return {clip: store[clip] for clip in store.ids}


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let float32 products round their inputs to 10 bits for a while, where they are asked to."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    if on:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def compare(exact: dict[str, Clip], found: dict[str, Clip], tolerance: float) -> dict[str, Any]:
    """Errors per frame, as shares of its norm; of the regression head, of the spread of what it gives."""
    if {name: clip.frames.shape for name, clip in exact.items()} != {n: c.frames.shape for n, c in found.items()}:
        return {"error": "other clips, or other numbers of frames", "passed": False}
    a, b = (_every(side, exact, "frames") for side in (exact, found))
    norms, theirs = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    least = 0.1 * np.median(norms)  # silence has next to none
    errors = np.linalg.norm(a - b, axis=1) / np.maximum(norms, least)
    row: dict[str, Any] = {
        "frames": len(a),
        "largest_difference": float(np.abs(a - b).max()),
        "relative_error_max": float(errors.max()),
        "relative_error_mean": float(errors.mean()),
        "cosine_lowest": float(((a * b).sum(axis=1) / np.maximum(norms * theirs, 1e-12))[norms > least].min()),
        "tolerance": tolerance,
        "passed": bool(errors.max() <= tolerance),  # not a number is no pass
    }
    for output in ("vad", "vad_pooled"):
        if all(getattr(clip, output) is not None for clip in exact.values()):
            x, y = (_every(side, exact, output) for side in (exact, found))
            row[f"{output}_error"] = float(np.abs(x - y).max() / np.sqrt(np.square(x).mean()))
            row["passed"] &= row[f"{output}_error"] <= HEAD_SPREAD * tolerance
    return row


def _every(clips: dict[str, Clip], order: Iterable[str], array: str) -> NDArray[np.float64]:
    """(rows, numbers) of all clips, one after the other."""
    return np.concatenate([np.atleast_2d(getattr(clips[name], array)) for name in order]).astype(np.float64)
