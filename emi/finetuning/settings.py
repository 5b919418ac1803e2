"""Settings of fine-tuning: those of a head (`train_head.training.settings`), and the backbone's in [finetune]."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cache.paths import StrPath
from extract.settings import DecodeOptions
from train_head.errors import TrainSettingsError, unknown
from train_head.training.settings import TrainSettings, resolve_settings

TABLE = "finetune"
AUDIO_DTYPES = ("auto", "int16")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How the backbone under a head is trained.

    Attributes:
        freeze: what never learns: "none", "cnn" (the convolutions, as is usual for wav2vec 2.0), "layers:N" (also the
            projection and the first N layers), or "backbone". Frozen parts run without dropout, but beside adapters.
        unfreeze_every: the head learns alone for so many epochs, then one stage more with each so many, from the top
            down; 0 trains all that `freeze` leaves from the start.
        backbone_lr: peak learning rate of the backbone; that of the head is `lr`.
        layer_decay: the learning rate of each stage is so many times that of the one above it.
        backbone_dropout: of every dropout in it; -1 leaves the checkpoint's own.
        layerdrop: chance of each layer that learns to be skipped; with SpecAugment, and in WavLM, of any layer.
        spec_augment: whether spans of frames are masked as the checkpoint's configuration says.
        noise_snr: white noise is added at a signal-to-noise ratio from here up to 20 dB more; 0 adds none.
        gain_db: the waveform is made louder or softer by up to so much, which matters where it is not normalised.
        speed: a third of the clips each is played slower and faster by this share, 0.1 for example.
        lora: rank of low-rank adapters, which then learn in place of the layers they stand beside; 0 uses none.
        checkpointing: compute activations again on the way back instead of keeping them: less memory, more time, the
            same numbers.
        fsdp: split weights, gradients and optimizer state over the processes: less memory in each, more exchanged, the
            same numbers.
        processes: on this machine that share each batch, with an equal part of a CPU's threads each, or a GPU; each
            holds what one alone would. Results differ by rounding; with dropout, what is drawn depends on their number.
        batch_seconds: audio (clips x longest clip) that goes through the backbone at once; 0 chooses. It sets the
            memory, and without dropout no number: gradients are those of `batch_size` clips.
        remember: keep on disk, for the time of the run, what the frozen bottom of the backbone gives of each clip, so
            that it is computed once; where waveforms are not augmented, and the disk has room.
        max_seconds: what is kept of each clip.
        audio_dtype: how decoded audio is kept: "auto", 16-bit where that loses nothing (16 kHz PCM) and else float32;
            or "int16", rounded to 16 bits always.
        track: number of the audio track, from 1 on; 0 takes the one marked default, else the first.
        allow_truncated: use media that are cut off or damaged as far as they decode.
        save_minutes: the state is saved after so much time within an epoch, and at its end.
    """

    freeze: str = "cnn"
    unfreeze_every: int = 0
    backbone_lr: float = 1e-5
    layer_decay: float = 1.0
    backbone_dropout: float = -1.0
    layerdrop: float = 0.0
    spec_augment: bool = False
    noise_snr: float = 0.0
    gain_db: float = 0.0
    speed: float = 0.0
    lora: int = 0
    checkpointing: bool = False
    fsdp: bool = False
    processes: int = 1
    batch_seconds: float = 0.0
    remember: bool = True
    max_seconds: float = 12.0
    audio_dtype: str = "auto"
    track: int = 0
    allow_truncated: bool = False
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise TrainSettingsError(f"{TABLE}.{field.name} must be a {kind.__name__}, got {value!r}")
        if not re.fullmatch(r"none|cnn|backbone|layers:[0-9]+", self.freeze):
            raise TrainSettingsError(f"freeze must be none, cnn, layers:N or backbone, got {self.freeze!r}")
        if self.audio_dtype not in AUDIO_DTYPES:
            raise TrainSettingsError(unknown("audio_dtype", self.audio_dtype, AUDIO_DTYPES))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise TrainSettingsError(f"{name} must lie from {low:g} to {high:g}, got {value}")
        if self.lora and self.freeze != "backbone":
            raise TrainSettingsError(
                f"with lora only the adapters and the head learn: give freeze backbone beside it, not {self.freeze}"
            )
        if self.fsdp and self.layerdrop:
            raise TrainSettingsError(
                "with layerdrop each process skips other layers, and with fsdp all must run the same; leave out one of "
                "them"
            )
        if self.freeze == "backbone" and not self.lora and (self.spec_augment or self.layerdrop):
            raise TrainSettingsError("spec_augment and layerdrop change nothing in a frozen backbone; leave them out")

    @property
    def augments(self) -> bool:
        """Whether waveforms are changed in training."""
        return bool(self.noise_snr or self.gain_db or self.speed)

    @property
    def decoding(self) -> DecodeOptions:
        """What of each file is decoded."""
        return DecodeOptions(track=self.track or None, allow_truncated=self.allow_truncated)

    def to_toml(self) -> dict[str, Any]:
        """The table [finetune]; without the options of decoding where they are off, so that older runs resume."""
        return {key: value for key, value in asdict(self).items() if value or key not in ("track", "allow_truncated")}


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
    ("max_seconds", 0.01, 3600.0),
    ("save_minutes", 0.0, 1e6),
    ("track", 0, 1000),
)


def resolve(config: StrPath | None = None, **overrides: Any) -> tuple[TrainSettings, FinetuneSettings]:
    """Defaults, then a TOML file, then keyword arguments that are not None, each to the half that knows it.

    Raises:
        TrainSettingsError: an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    known = {field.name for field in fields(FinetuneSettings)}
    own = _table(config) | {key: v for key, v in overrides.items() if key in known and v is not None}
    rest = {key: value for key, value in overrides.items() if key not in known}
    settings = resolve_settings(config, **rest)
    if settings.augment["mixup"]:
        raise TrainSettingsError("mixup mixes cached features, and fine-tuning has none; leave it out")
    return settings, FinetuneSettings(**own)


def _table(config: StrPath | None) -> dict[str, Any]:
    """The table [finetune] of a settings file; `resolve_settings` reads the rest, and says what is wrong with it."""
    if config is None or not Path(config).is_file():
        return {}
    try:
        table = tomllib.loads(Path(config).read_text(encoding="utf-8")).get(TABLE, {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}
    if not isinstance(table, Mapping):
        raise TrainSettingsError(f"{config}: {TABLE} must be a table of options, got {table!r}")
    known = {field.name for field in fields(FinetuneSettings)}
    for key in table:
        if key not in known:
            raise TrainSettingsError(f"{config}: {unknown('option of finetune', key, known)}")
    return dict(table)
