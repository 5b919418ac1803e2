"""Settings of an extraction, and the choice of device and precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from cache.settings import setting
from cache.system.machine import available_cores, bfloat16_unit
from extract.errors import ExtractSettingsError
from extract.faces.options import DEFAULT as DEFAULT_FACES
from extract.faces.options import FaceOptions

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000
"""Hz, to which all media are resampled."""
RESAMPLER = "torchaudio sinc_interp_hann width 6"
"""In the fingerprint: torchaudio's default windowed sinc with six zero crossings."""
DECODER = 2
"""Version of the decoding rules, in the fingerprint (absent = 1). Version 2 keeps the container's clock (silence in
gaps and before late audio), takes the track marked default, and reads joined MP3s whole."""
CUDA_BYTES_PER_SECOND = 32 << 20
"""Upper bound of the device memory per second of audio in a batch of a large model (first layers, float32)."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STORAGE_DTYPES = ("float16", "float32")
DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Which part of a file is decoded.

    Attributes:
        track: number of the audio track, from 1; None takes the track marked default, else the first.
        allow_truncated: use files that are cut off or damaged up to that point, instead of refusing them.
        faces: which rows and which face of a video, for backbones that take faces.
    """

    track: int | None = None
    allow_truncated: bool = False
    faces: FaceOptions = DEFAULT_FACES

    def __post_init__(self) -> None:
        if self.track is not None and self.track < 1:
            raise ExtractSettingsError(f"--track counts audio tracks from 1, got {self.track}")


DEFAULT = DecodeOptions()


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """How features are made."""

    backbone: str = setting(
        "silero", "silero, mfcc, mtcnn (faces), a Hugging Face id, or a local checkpoint folder of sound or images."
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hugging Face id.", shown="main")
    layer: int | None = setting(
        None, "Take this layer of a Whisper encoder, counted from 1; 0 is its input.", metavar="N", shown="the last"
    )
    pooling: str | None = setting(
        None, "Output of an image encoder: cls, its class token, or pooled, its pooled output.", shown="by its kind"
    )
    max_seconds: float | None = setting(
        12.0, "Use this many seconds of each clip, from its start; none uses whole clips.", none="none"
    )
    precision: str = setting(
        "auto",
        "Arithmetic: fp32, bf16, fp16, or auto: as in the cache, else bf16 where the hardware has it, else fp32.",
    )
    device: str = setting("auto", "auto (CUDA where available), cpu or cuda.")
    dtype: str = setting("float16", "Storage of the frames: float16 or float32.")
    media_root: str | Path | None = setting(None, "Where the paths of a CSV or list start.", shown="its own folder")
    shard: str | None = setting(None, "Do only this share of the clips, from 1/N to N/N.", metavar="I/N")
    batch_seconds: float | None = setting(
        None, "Upper bound in seconds on clips x longest clip of a batch.", shown="by device"
    )
    workers: int = setting(0, "Threads or processes that decode; 0 starts one per core.")
    processes: int = setting(
        0, "Processes that share the work, a GPU each (Zarr only); 0 starts one per GPU. With Ray, the most actors."
    )
    engine: str = setting("local", "local, or ray: an actor per GPU or CPU core of a Ray cluster.")
    address: str | None = setting(
        None, "Ray cluster: auto or HOST:PORT.", shown="one started on this machine for the run"
    )
    track: int | None = setting(
        None, "Audio track, counted from 1.", metavar="N", shown="the one marked default, else the first"
    )
    allow_truncated: bool = setting(
        False, "Use files that are cut off or damaged as far as they decode; truncated.csv lists them."
    )
    fps: float | None = setting(
        6.0,
        "Of faces: rows per second; native is every frame of the video, with its times, also of sound for vggish and "
        "mfcc.",
        none="native",
    )
    hop: float | None = setting(
        None, "Of vggish and mfcc: seconds from one row to the next.", metavar="SECONDS", shown="by backbone"
    )
    videos: str | Path | None = setting(
        None,
        "Of folders of images: where the videos lie whose frames they are, called like the folders; rows have the "
        "times of the frames, as with --fps native.",
    )
    face: str = setting(
        "longest",
        "Which face, where several are seen: longest, largest, first, left, right, or the one in the region "
        "x0,y0,x1,y1 in fractions of the picture.",
    )
    min_face: int = setting(40, "Side of the smallest face that is searched, in pixels.", metavar="PIXELS")
    detect_every: int = setting(
        1, "Search faces in every n-th picture, and interpolate between two that show the face.", metavar="N"
    )
    crop: str = setting(
        "aligned",
        "How faces are cut out: aligned by eyes, nose and mouth to 112 pixels, or square, the head as it is at 224.",
    )
    missing_faces: str = setting(
        "invalid",
        "What a row without a face is: invalid, which heads leave out, or black: the features of a black picture.",
    )
    refresh: bool = setting(False, "Extract clips again whose media changed since; the old ones are replaced.")

    def __post_init__(self) -> None:
        choices = (("precision", PRECISIONS), ("dtype", STORAGE_DTYPES), ("device", DEVICES), ("engine", ENGINES))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ExtractSettingsError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, value in (("max_seconds", self.max_seconds), ("batch_seconds", self.batch_seconds)):
            if value is not None and not 0 < value < float("inf"):
                raise ExtractSettingsError(f"{name} must be above zero, got {value}")
        if self.hop is not None and not 0.01 <= self.hop < float("inf"):
            raise ExtractSettingsError(f"--hop: at least 0.01 seconds, got {self.hop}")
        if self.hop is not None and self.fps is None:
            raise ExtractSettingsError(f"--hop {self.hop:g} and --fps native both say when rows are; leave one out")
        for name, number in (("workers", self.workers), ("processes", self.processes)):
            if number < 0:
                raise ExtractSettingsError(f"{name} must be 0 (automatic) or above, got {number}")
        if self.address is not None and self.engine != "ray":
            raise ExtractSettingsError(
                f"--address {self.address} names a Ray cluster; add --engine ray, or leave it out"
            )
        if self.videos is not None and self.fps is not None:
            if self.fps != ExtractSettings.fps:
                raise ExtractSettingsError(
                    f"--videos gives images the times of the frames of their videos, and --fps {self.fps:g} a rate; "
                    "leave one of them out"
                )
            object.__setattr__(self, "fps", None)
        _ = self.decoding, self.shard_numbers()  # which check their own options

    @property
    def decoding(self) -> DecodeOptions:
        """Which part of each file is decoded."""
        faces = FaceOptions(
            fps=self.fps,
            face=self.face,
            min_face=self.min_face,
            detect_every=self.detect_every,
            crop=self.crop,
            missing_faces=self.missing_faces,
        )
        return DecodeOptions(track=self.track, allow_truncated=self.allow_truncated, faces=faces)

    def used(self, seconds: float) -> float:
        """Return how many seconds of a medium of this length are used; a length that is unknown (NaN) is the cut."""
        return min(self.max_seconds, seconds) if self.max_seconds is not None else 0.0 if isnan(seconds) else seconds

    def shard_numbers(self) -> tuple[int, int]:
        """Return (index from 0, count) of this job's share."""
        index, _, count = (self.shard if self.shard is not None else "1/1").partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ExtractSettingsError(f"--shard takes I/N with 1 <= I <= N, for example 2/8, got {self.shard!r}")
        return int(index) - 1, int(count)

    def resolved_device(self) -> "torch.device":
        """Return the device to compute on. With Ray, CUDA need not be available on this machine.

        Raises:
            ExtractSettingsError: CUDA was asked for and is not available.
        """
        import torch

        cuda = torch.cuda.is_available() or (self.engine == "ray" and self.device == "cuda")
        if self.device == "cuda" and not cuda:
            raise ExtractSettingsError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
        return torch.device("cuda" if cuda and self.device != "cpu" else "cpu")

    def resolved_precision(self, supported: Sequence[str], in_cache: str | None = None) -> tuple[str, str]:
        """Return (precision, the reason for it).

        Args:
            supported: precisions of the backbone.
            in_cache: precision of the features that the cache already holds; "auto" keeps it.

        Raises:
            ExtractSettingsError: the backbone cannot compute in the precision that was asked for.
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
            import torch

            # older GPUs emulate bfloat16; the GPUs of a cluster are assumed to have units for it
            if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16", "the GPU's matrix units"
            return "fp32", "a GPU without bfloat16"
        if unit := bfloat16_unit():
            return "bf16", f"this processor multiplies it in hardware: {unit}"
        return "fp32", "no bfloat16 unit here"

    def batching(self, small: bool) -> tuple[float, int]:
        """Return (batch seconds, parallel batches) for a backbone.

        Equal on every run, because the bytes of a clip depend on its batch. On a CPU each core takes batches of a few
        clips, so that intermediate values stay in the core's cache; a small model costs more per call than per second,
        and takes larger batches. A GPU computes two batches at a time, each as large as half its memory allows, in
        steps of two up to 480 s.
        """
        if self.resolved_device().type == "cuda":
            import torch

            fits = torch.cuda.mem_get_info()[1] / 2 / 2 / CUDA_BYTES_PER_SECOND
            return self.batch_seconds or next((s for s in (480.0, 240.0, 120.0, 60.0, 30.0) if s <= fits), 15.0), 2
        return self.batch_seconds or (240.0 if small else 16.0), available_cores()

    def resolved_processes(self) -> int:
        """Return the number of processes that share the work."""
        if self.processes or self.device == "cpu":
            return max(1, self.processes)
        import torch

        return max(1, torch.cuda.device_count())
