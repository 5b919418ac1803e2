"""Settings of an extraction, and the choice of device and precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.system.machine import available_cores, bfloat16_unit
from extract.errors import ExtractSettingsError

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000
"""Hz; all media are brought to it."""
RESAMPLER = "torchaudio sinc_interp_hann width 6"
"""Name in the fingerprint: torchaudio's default windowed sinc of six zero crossings."""

CUDA_BYTES_PER_SECOND = 32 << 20
"""Device memory for a second of audio in a large model's batch, from above: the front end's first layers in float32."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = ("float16", "float32")
DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("local", "ray")


DECODER = 2
"""Version of how media become samples, in the fingerprint (absent = 1). 2 keeps the container's clock (silence in gaps
and before late audio), takes the track marked default, and reads joined MP3s whole."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What of a file is decoded.

    Attributes:
        track: number of the audio track, from 1 on; None takes the one marked default, else the first.
        allow_truncated: use files that are cut off or damaged as far as they decode, instead of refusing them.
    """

    track: int | None = None
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        if self.track is not None and self.track < 1:
            raise ExtractSettingsError(f"--track counts audio tracks from 1, got {self.track}")


DEFAULT = DecodeOptions()
"""The track marked default, else the first, of whole files."""


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """How features are made.

    Attributes:
        backbone: name, Hugging Face id or local folder.
        revision: branch, tag or commit where the backbone is a Hugging Face id; the main branch by default.
        max_seconds: only this much of each clip is used (12 in the paper).
        precision: arithmetic of the backbone; "auto" is that of a cache that exists, else bf16 where the device
            multiplies it in hardware, else fp32.
        device: "auto" takes CUDA where there is one.
        dtype: storage dtype of the frames.
        media_root: where the paths of a CSV or list start; its own folder by default.
        shard: this job's share as "I/N" (I from 1 to N), or None for everything.
        batch_seconds: upper bound of clips x longest clip in one batch.
        workers: threads or processes that decode; 0 takes one per core.
        processes: processes that share the work, each with a GPU of its own; 0 takes one per GPU, or one on a CPU. With
            the engine "ray" at most so many actors; 0 takes one per GPU of the cluster, or one per CPU core.
        engine: "local", or "ray" for the machines of a Ray cluster (`extract.workers.ray_engine`).
        address: of the cluster, as "auto" or HOST:PORT; None starts one on this machine for the run.
        track: see `DecodeOptions`.
        allow_truncated: see `DecodeOptions`; what is used so is listed in truncated.csv beside the cache.
        refresh: extract clips again whose media changed since.
    """

    backbone: str = "silero"
    revision: str | None = None
    max_seconds: float = 12.0
    precision: str = "auto"
    device: str = "auto"
    dtype: str = "float16"
    media_root: str | Path | None = None
    shard: str | None = None
    batch_seconds: float | None = None
    workers: int = 0
    processes: int = 0
    engine: str = "local"
    address: str | None = None
    track: int | None = None
    allow_truncated: bool = False
    refresh: bool = False

    def __post_init__(self) -> None:
        choices = (("precision", PRECISIONS), ("dtype", DTYPES), ("device", DEVICES), ("engine", ENGINES))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ExtractSettingsError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("max_seconds", "batch_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ExtractSettingsError(f"{name} must be above zero, got {value}")
        for name in ("workers", "processes"):
            if getattr(self, name) < 0:
                raise ExtractSettingsError(f"{name} must be 0 (automatic) or above, got {getattr(self, name)}")
        if self.address is not None and self.engine != "ray":
            raise ExtractSettingsError(
                f"--address {self.address} names a Ray cluster; add --engine ray, or leave it out"
            )
        self.shard_numbers()
        _ = self.decoding

    @property
    def decoding(self) -> DecodeOptions:
        """What of each file is decoded."""
        return DecodeOptions(track=self.track, allow_truncated=self.allow_truncated)

    def shard_numbers(self) -> tuple[int, int]:
        """(index from 0, count) of this job's share."""
        if self.shard is None:
            return 0, 1
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ExtractSettingsError(f"--shard takes I/N with 1 <= I <= N, for example 2/8, got {self.shard!r}")
        return int(index) - 1, int(count)

    def resolved_device(self) -> "torch.device":
        """The device to compute on; CUDA asked of a cluster need not be on this machine.

        Raises:
            ExtractSettingsError: CUDA was asked for and is not there.
        """
        import torch

        there = torch.cuda.is_available() or (self.engine == "ray" and self.device == "cuda")
        if self.device == "cuda" and not there:
            raise ExtractSettingsError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
        return torch.device("cuda" if there and self.device != "cpu" else "cpu")

    def resolved_precision(self, supported: Sequence[str], in_cache: str | None = None) -> tuple[str, str]:
        """(precision, the reason for it), among those that the backbone supports.

        Args:
            supported: what the backbone computes in.
            in_cache: precision of the features that the cache holds already, which auto goes on with.

        Raises:
            ExtractSettingsError: the backbone cannot compute in the precision asked for.
        """
        if self.precision != "auto":
            if self.precision not in supported:
                raise ExtractSettingsError(
                    f"--precision {self.precision}: backbone {self.backbone} computes in {', '.join(supported)} only"
                )
            return self.precision, "as asked for"
        if in_cache is not None and in_cache in supported:
            return in_cache, "as in the cache"
        if "bf16" not in supported:
            return "fp32", "the only one of this backbone"
        if self.resolved_device().type == "cuda":
            return (
                ("bf16", "the GPU's matrix units") if _gpu_multiplies_bfloat16() else ("fp32", "a GPU without bfloat16")
            )
        unit = bfloat16_unit()
        return (
            ("bf16", f"this processor multiplies it in hardware: {unit}") if unit else ("fp32", "no bfloat16 unit here")
        )

    def batching(self, small: bool) -> tuple[float, int]:
        """(batch seconds, parallel batches) for a backbone; the same on every run, for the bytes depend on the batches.

        On a CPU each core takes batches of a few clips, which keeps what lies between two operations in the core's
        cache; a small model pays per call, not per second, and takes more. A GPU is filled by batches as large as half
        its memory allows, in steps of two up to 480 s, of which two are under way.
        """
        if self.resolved_device().type == "cuda":
            import torch

            fits = torch.cuda.mem_get_info()[1] / 2 / 2 / CUDA_BYTES_PER_SECOND
            return self.batch_seconds or next((s for s in (480.0, 240.0, 120.0, 60.0, 30.0) if s <= fits), 15.0), 2
        return self.batch_seconds or (240.0 if small else 16.0), available_cores()

    def resolved_processes(self) -> int:
        """How many processes share the work."""
        if self.processes or self.device == "cpu":
            return max(1, self.processes)
        import torch

        return max(1, torch.cuda.device_count())


def _gpu_multiplies_bfloat16() -> bool:
    """Whether the GPU has units for bfloat16, which torch emulates on older ones; of a cluster's GPUs it is assumed."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
