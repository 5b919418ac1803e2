"""Settings of an extraction, and the choice of device and precision."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extract.errors import ExtractSettingsError

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000
"""Hz; all media are brought to it."""
RESAMPLER = "torchaudio sinc_interp_hann width 6"
"""Name in the fingerprint: torchaudio's default windowed sinc of six zero crossings."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = ("float16", "float32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """How features are made.

    Attributes:
        backbone: name, Hugging Face id or local folder.
        max_seconds: only this much of each clip is used (12 in the paper).
        precision: arithmetic of the backbone; "auto" is bf16 on CUDA, fp32 on CPU.
        device: "auto" takes CUDA where there is one.
        dtype: storage dtype of the frames.
        media_root: where the paths of a CSV or list start; its own folder by default.
        shard: this job's share as "I/N" (I from 1 to N), or None for everything.
        batch_seconds: upper bound of clips x longest clip in one batch.
        workers: decoding threads; 0 takes one per core.
    """

    backbone: str = "silero"
    max_seconds: float = 12.0
    precision: str = "auto"
    device: str = "auto"
    dtype: str = "float16"
    media_root: str | Path | None = None
    shard: str | None = None
    batch_seconds: float | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("precision", PRECISIONS), ("dtype", DTYPES), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise ExtractSettingsError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("max_seconds", "batch_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ExtractSettingsError(f"{name} must be above zero, got {value}")
        self.shard_numbers()

    def shard_numbers(self) -> tuple[int, int]:
        """(index from 0, count) of this job's share."""
        if self.shard is None:
            return 0, 1
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ExtractSettingsError(f"--shard takes I/N with 1 <= I <= N, for example 2/8, got {self.shard!r}")
        return int(index) - 1, int(count)

    def resolved_device(self) -> "torch.device":
        """The device to compute on.

        Raises:
            ExtractSettingsError: CUDA was asked for and is not there.
        """
        import torch

        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise ExtractSettingsError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
        return torch.device("cuda" if there and self.device != "cpu" else "cpu")

    def resolved_precision(self, supported: Sequence[str]) -> tuple[str, str]:
        """(precision, the reason for it), among those that the backbone supports.

        Raises:
            ExtractSettingsError: the backbone cannot compute in the precision asked for.
        """
        if self.precision != "auto":
            if self.precision not in supported:
                raise ExtractSettingsError(
                    f"--precision {self.precision}: backbone {self.backbone} computes in {', '.join(supported)} only"
                )
            return self.precision, "as asked for"
        if "bf16" in supported and self.resolved_device().type == "cuda":
            return "bf16", "the CUDA device's matrix units"
        return "fp32", "exact, and no faster unit is used here"

    def batching(self, small: bool) -> tuple[float, int]:
        """(batch seconds, parallel batches) for a backbone.

        On a CPU a large model gains nothing from batches above a few clips; a small one pays per call, not per second,
        and runs one batch per core. A GPU is filled by large batches.
        """
        if self.resolved_device().type == "cuda":
            return self.batch_seconds or 480.0, 1
        if small:
            return self.batch_seconds or 240.0, os.cpu_count() or 1
        return self.batch_seconds or 48.0, 1
