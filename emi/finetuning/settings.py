"""Settings of fine-tuning: of the head (`train_head.training.settings`), and of the backbone in [finetune]."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cache.paths import StrPath
from cache.settings import setting
from extract.settings import DecodeOptions, ExtractSettings
from train_head.errors import TrainSettingsError, check_known, refuse
from train_head.training.settings import TrainSettings, resolve_settings

TABLE = "finetune"
ONLY = {
    "audio": frozenset(
        "layerdrop spec_augment noise_snr gain_db speed fsdp batch_seconds remember audio_dtype track".split()
    ),
    "face": frozenset(
        "flip random_crop brightness contrast saturation batch_crops fps videos face min_face detect_every crop".split()
    ),
}
"""Settings that only backbones of one modality have."""
MEDIA = {"audio": "sound", "face": "faces"}
UNRECORDED = ("track", "allow_truncated", "videos")
"""Options of decoding that a run records only where they are given."""
AUDIO_DTYPES = ("auto", "int16")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How the backbone under a head is trained. Frozen parts run without dropout, except beside adapters."""

    freeze: str = setting(
        "cnn",
        "What is never trained: none, cnn, layers:N (the CNN, the projection and the first N layers), backbone, or "
        "all-but-attention (of an IResNet: all but its LA-SE).",
    )
    unfreeze_every: int = setting(
        0, "Train the head alone for N epochs, then one more stage every N, from the top down; 0 trains all at once."
    )
    backbone_lr: float = setting(1e-5, "Peak learning rate of the backbone; that of the head is --lr.")
    layer_decay: float = setting(1.0, "Learning rate of each stage as a multiple of that of the stage above it.")
    backbone_dropout: float = setting(-1.0, "Every dropout in the backbone; -1 leaves the checkpoint's values.")
    layerdrop: float = setting(0.0, "Probability with which each layer is skipped.")
    spec_augment: bool = setting(False, "Mask spans of frames as the checkpoint's configuration says.")
    noise_snr: float = setting(
        0.0, "Add white noise at a signal-to-noise ratio from this many dB to 20 dB more; 0 adds none.", option=None
    )
    gain_db: float = setting(
        0.0, "Change loudness by up to this many dB, which matters without normalisation.", option=None
    )
    speed: float = setting(
        0.0, "Play a third of the clips slower and a third faster by this share, such as 0.1.", option=None
    )
    flip: float = setting(
        0.5, "Of faces: chance of a clip or window to be mirrored in training; its crops all are or none.", option=None
    )
    random_crop: float = setting(
        0.1, "Of faces: cut up to this share off the sides at a random place, and scale up again.", option=None
    )
    brightness: float = setting(0.2, "Of faces: change brightness by up to this share.", option=None)
    contrast: float = setting(0.2, "Of faces: change contrast by up to this share.", option=None)
    saturation: float = setting(0.2, "Of faces: change saturation by up to this share.", option=None)
    lora: int = setting(
        0, "Rank of low-rank adapters, trained in place of the layers beside them; needs peft; 0 is off."
    )
    checkpointing: bool = setting(False, "Compute activations twice instead of keeping them: less memory, more time.")
    fsdp: bool = setting(False, "Split weights, gradients and optimizer state over the processes: less memory in each.")
    processes: int = setting(
        1, "Processes on this machine that share each batch, each with a GPU or a share of the CPU's threads."
    )
    batch_seconds: float = setting(
        0.0, "Audio that passes the backbone at once: sets the memory; 0 takes 24 s on a CPU, 120 s on CUDA."
    )
    batch_crops: int = setting(
        0, "Crops of faces that pass the backbone at once: sets the memory; 0 takes 32 on a CPU, 128 on CUDA."
    )
    remember: bool = setting(
        True,
        "Keep the outputs of frozen bottom layers on disk during the run, so that they are computed once.",
        option=None,
    )
    max_seconds: float | None = setting(
        12.0, "Use this many seconds of each clip, from its start; of faces, none uses whole clips.", none="none"
    )
    audio_dtype: str = setting(
        "auto", "Decoded audio: auto (16-bit where that loses nothing, else float32) or int16 (rounded).", option=None
    )
    track: int = setting(0, "Audio track, from 1; 0 takes the one marked default, else the first.", metavar="N")
    allow_truncated: bool = setting(False, "Use files that are cut off or damaged as far as they decode.")
    fps: float | None = setting(
        ExtractSettings.fps, "Of faces: rows per second; native is every frame of the video.", none="native"
    )
    videos: str = setting(
        "",
        "Of folders of images: where the videos lie whose frames they are, as for emi extract; rows have the times of "
        "the frames.",
        metavar="FOLDER",
    )
    face: str = setting(ExtractSettings.face, "Which face of a video, where several are seen; as for emi extract.")
    min_face: int = setting(
        ExtractSettings.min_face, "Side of the smallest face that is searched, in pixels.", metavar="PIXELS"
    )
    detect_every: int = setting(
        ExtractSettings.detect_every, "Search faces in every n-th picture, and interpolate.", metavar="N"
    )
    crop: str = setting(
        ExtractSettings.crop, "How faces are cut out: aligned to 112 pixels, or square, the head as it is at 224."
    )
    save_minutes: float = setting(10.0, "Minutes after which the state is saved within an epoch.", option=None)

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if value is None and "none" in field.metadata:
                continue
            fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise TrainSettingsError(f"{TABLE}.{field.name} must be a {kind.__name__}, got {value!r}")
        check_known("audio_dtype", [self.audio_dtype], AUDIO_DTYPES)
        named = ((name, getattr(self, name), low, high) for name, low, high in _RANGES)
        values = [one for one in named if one[1] is not None]
        refuse(
            (
                not re.fullmatch(r"none|cnn|backbone|all-but-attention|layers:[0-9]+", self.freeze),
                f"freeze must be none, cnn, layers:N, backbone or all-but-attention, got {self.freeze!r}",
            ),
            *((not lo <= v <= hi, f"{name} must lie from {lo:g} to {hi:g}, got {v}") for name, v, lo, hi in values),
            (
                self.lora and self.freeze != "backbone",
                f"with lora only the adapters and the head learn: give freeze backbone beside it, not {self.freeze}",
            ),
            (
                self.fsdp and self.layerdrop,
                "with layerdrop each process skips other layers, and with fsdp all must run the same; leave out one of "
                "them",
            ),
            (
                self.freeze == "backbone" and not self.lora and (self.spec_augment or self.layerdrop),
                "spec_augment and layerdrop change nothing in a frozen backbone; leave them out",
            ),
        )
        self.extraction("")  # which checks its own options

    @property
    def augments_sound(self) -> bool:
        """Whether waveforms are changed in training."""
        return bool(self.noise_snr or self.gain_db or self.speed)

    @property
    def cut(self) -> float:
        """Seconds of sound that are used of each clip."""
        assert self.max_seconds is not None
        return self.max_seconds

    @property
    def decoding(self) -> DecodeOptions:
        """Which part of each file is decoded."""
        return self.extraction("").decoding

    def extraction(self, backbone: str) -> ExtractSettings:
        """Return the settings of an extraction with the same features.

        Args:
            backbone: name, Hugging Face id or folder.

        Raises:
            ExtractSettingsError: a setting that both have is wrong.
        """
        return ExtractSettings(
            backbone=backbone,
            max_seconds=self.max_seconds,
            dtype="float32",
            track=self.track or None,
            allow_truncated=self.allow_truncated,
            fps=self.fps,
            videos=self.videos or None,
            face=self.face,
            min_face=self.min_face,
            detect_every=self.detect_every,
            crop=self.crop,
        )

    def check_modality(self, modality: str) -> None:
        """Refuse settings that do nothing for a backbone of a modality.

        Raises:
            TrainSettingsError: names them.
        """
        foreign = [
            (field.name, other)
            for other, names in ONLY.items()
            for field in fields(self)
            if other != modality and field.name in names and getattr(self, field.name) != field.default
        ]
        if foreign:
            named = " and ".join(name for name, _ in foreign)
            raise TrainSettingsError(
                f"{named}: for backbones of {MEDIA[foreign[0][1]]}, and this one takes {MEDIA[modality]}; leave "
                f"{'it' if len(foreign) == 1 else 'them'} out"
            )
        if modality == "audio" and self.max_seconds is None:
            raise TrainSettingsError("max_seconds none is for backbones of faces; give the seconds of sound to use")

    def to_toml(self, modality: str = "audio") -> dict[str, Any]:
        """The table [finetune]; without settings of other modalities, and without options of decoding that are off.

        The rate of faces is that of the rows, which is native where `videos` gives their times.
        """
        recorded = replace(self, fps=self.decoding.faces.fps)
        unused = {name for other, names in ONLY.items() if other != modality for name in names}
        kept = {field.name: field.metadata.get("none") for field in fields(self) if field.name not in unused}
        values = {name: none if (value := getattr(recorded, name)) is None else value for name, none in kept.items()}
        return {key: value for key, value in values.items() if value or key not in UNRECORDED}


WORDS = {field.name: field.metadata["none"] for field in fields(FinetuneSettings) if "none" in field.metadata}
"""What users type for None, by setting."""
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("unfreeze_every", 0, 10_000),
    ("backbone_lr", 1e-12, 1.0),
    ("layer_decay", 0.01, 1.0),
    ("backbone_dropout", -1.0, 0.99),
    ("layerdrop", 0.0, 0.99),
    ("noise_snr", 0.0, 100.0),
    ("gain_db", 0.0, 60.0),
    ("speed", 0.0, 0.5),
    ("lora", 0, 1024),
    ("processes", 1, 1024),
    ("batch_seconds", 0.0, 1e6),
    ("batch_crops", 0, 1_000_000),
    ("flip", 0.0, 1.0),
    ("random_crop", 0.0, 0.9),
    ("brightness", 0.0, 0.9),
    ("contrast", 0.0, 0.9),
    ("saturation", 0.0, 1.0),
    ("max_seconds", 0.01, 3600.0),
    ("save_minutes", 0.0, 1e6),
    ("track", 0, 1000),
)


def resolve(config: StrPath | None = None, **overrides: Any) -> tuple[TrainSettings, FinetuneSettings]:
    """Return defaults, overridden by a TOML file, then by keyword arguments that are not None, for head and backbone.

    Raises:
        TrainSettingsError: an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    names = {field.name for field in fields(FinetuneSettings)}
    settings = resolve_settings(config, **{key: value for key, value in overrides.items() if key not in names})
    if settings.augment["mixup"]:
        raise TrainSettingsError("mixup mixes cached features, and fine-tuning has none; leave it out")
    if settings.micro_batch:
        raise TrainSettingsError(
            "micro_batch is for heads on cached features; what bounds the memory of fine-tuning is batch_seconds, or "
            "batch_crops for faces"
        )
    table = {} if config is None else tomllib.loads(Path(config).read_text(encoding="utf-8")).get(TABLE, {})
    if not isinstance(table, Mapping):
        raise TrainSettingsError(f"{config}: {TABLE} must be a table of options, got {table!r}")
    check_known("option of finetune", table, names, f"{config}: ")
    given = {key: value for key, value in overrides.items() if key in names and value is not None}
    values: dict[str, Any] = {
        key: None if value == WORDS.get(key, ...) else value for key, value in {**table, **given}.items()
    }
    return settings, FinetuneSettings(**values)
