"""Settings of a training run: defaults from the paper, a TOML file, then what the caller says."""

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cache.errors import EmiError
from cache.paths import StrPath
from cache.settings import setting
from cache.system.machine import bfloat16_unit
from train_head.data.label_format import BOTH, UNIT, LabelColumns, LabelFormat, Range, parse_range
from train_head.errors import LabelError, TrainSettingsError, check_known
from train_head.validation import Validation

RECORD_TABLES = ("data", "features", "protocol", "finetune", "backbone", "versions", "licence")
"""Tables of a run's config.toml that record what it was made from, or are read elsewhere (`emi.finetuning`)."""
TABLES = ("augment",)
"""Tables of settings, beside those that hold a head's options."""
PRECISIONS, DEVICES = ("auto", "fp32", "bf16", "fp16"), ("auto", "cpu", "cuda")
_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("lr label_scale clip_value batch_size epochs", lambda value: value > 0, "be above 0"),
    ("lr label_scale clip_value weight_decay warmup_epochs", math.isfinite, "be finite"),
    ("weight_decay warmup_epochs patience stop_after seed", lambda value: value >= 0, "not be negative"),
    ("seed", lambda value: value < 2**32, "be below 2^32"),
    ("ema", lambda value: 0 <= value < 1, "lie in [0, 1)"),
)
"""Names of settings, what their values must satisfy, and the same in words."""


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How training batches are changed; 0 turns each kind off.

    Attributes:
        time_masks: spans per clip that are replaced by the clip's mean.
        time_mask_frames: longest span; no span is longer than half its clip.
        frame_dropout: chance of each frame to be taken out, the others closing up.
        noise: spread of Gaussian noise, in units of each feature's own spread over the batch.
        mixup: a of the Beta(a, a) distribution from which the share of another clip is drawn.

    Raises:
        TrainSettingsError: a value is of the wrong type or out of range.
    """

    time_masks: int = 0
    time_mask_frames: int = 25
    frame_dropout: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for option in fields(self):
            value, whole = getattr(self, option.name), isinstance(option.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise TrainSettingsError(f"augment: {option.name} must be {kind}, got {value!r}")
            if not 0 <= value < math.inf:
                raise TrainSettingsError(f"augment: {option.name} must be finite and not negative, got {value}")
            object.__setattr__(self, option.name, value if whole else float(value))
        if self.time_mask_frames < 1:
            raise TrainSettingsError(f"augment: time_mask_frames must be at least 1, got {self.time_mask_frames}")
        if self.frame_dropout >= 1:
            raise TrainSettingsError(f"augment: frame_dropout must lie below 1, got {self.frame_dropout}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a head is trained; the defaults are the paper's (arXiv 2403.11879, section 4).

    Importing this module imports no torch, so that `emi --help` is fast.
    """

    head: str = setting(
        "lstm", "lstm (the paper's), mean, mlp, gru, bilstm, attention, tcn, transformer, hierarchical or sequence."
    )
    head_options: Mapping[str, Any] = setting(
        dict, "Options of the head; in TOML the table of its name, [lstm].", option=None
    )
    loss: str = setting(
        "mse", 'mse, mae, huber, pearson, ccc, balanced_mse, focal_r or zero_inflated, or a sum: "0.7*ccc + 0.3*mse".'
    )
    weighting: str = setting(
        "none", "Weight of each label in the loss: none, lds or dense, which raise that of rare values.", option=None
    )
    augment: Mapping[str, Any] = setting(dict, "Options of augmentation; in TOML the table [augment].", option=None)
    lr: float = setting(1e-4, "Peak learning rate of AdamW.")
    weight_decay: float = setting(0.01, "Weight decay of AdamW.")
    batch_size: int = setting(32, "Clips per step.")
    epochs: int = setting(30, "Passes over the training clips.")
    stop_after: int = setting(0, "Stop after this many epochs of the schedule of --epochs; 0 trains all.")
    warmup_epochs: float = setting(
        1.0, "Epochs over which the learning rate rises; a cosine then takes it to 0.", option=None
    )
    clip_value: float = setting(100.0, "Gradients are clipped to this absolute value.", option=None)
    patience: int = setting(0, "Stop after this many epochs without a better validation score; 0 never stops.")
    ema: float = setting(
        0.0, "Decay per step of a moving average of the weights, which is evaluated and saved; 0 is off.", option=None
    )
    standardise: bool = setting(
        False, "Scale every feature to mean 0 and standard deviation 1 over the training frames."
    )
    seed: int = setting(0, "Random seed of weights, order of clips, dropout and augmentation; the first of several.")
    precision: str = setting(
        "auto", "Matrix products: fp32, bf16, auto (bf16 where the processor has it), or fp16 to fine-tune on a GPU."
    )
    device: str = setting("auto", "cpu, cuda or auto.")
    label_scale: float = setting(1.0, "100 for labels from 0 to 100; predictions lie between 0 and 1.")
    label_range: Range = setting(
        UNIT, "-1,1 or 1,5: the ends of the labels' scale; predictions are on that scale.", metavar="MIN,MAX"
    )

    def __post_init__(self) -> None:
        from train_head.heads import head_options
        from train_head.losses import canonical, canonical_weighting, compares_clips

        object.__setattr__(self, "loss", canonical(self.loss))
        object.__setattr__(self, "weighting", canonical_weighting(self.weighting))
        object.__setattr__(self, "augment", asdict(_augment_settings(self.augment)))
        try:
            object.__setattr__(self, "label_range", parse_range(self.label_range))
        except LabelError as error:
            raise TrainSettingsError(f"label_range: {error}") from error
        if self.label_scale != 1.0 and self.label_range != UNIT:
            raise TrainSettingsError(BOTH)
        for group, fits, rule in _RULES:
            for name in group.split():
                if not fits(getattr(self, name)):
                    raise TrainSettingsError(f"{name} must {rule}, got {getattr(self, name)}")
        if self.batch_size == 1 and (names := compares_clips(self.loss)):
            raise TrainSettingsError(
                f"the loss {names[0]} compares the clips of a batch, and is constant for one; give batch_size 2 or more"
            )
        if self.stop_after > self.epochs:
            raise TrainSettingsError(f"stop_after must not be above epochs ({self.epochs}), got {self.stop_after}")
        for name, known in (("precision", PRECISIONS), ("device", DEVICES)):
            check_known(name, [getattr(self, name)], known)
        object.__setattr__(self, "head_options", asdict(head_options(self.head, dict(self.head_options))))

    def on_this_machine(self) -> "TrainSettings":
        """Return the settings with device and precision resolved, as a run records them.

        Raises:
            TrainSettingsError: there is no CUDA device, and one is asked for.
        """
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise TrainSettingsError("--device cuda: torch finds no CUDA device here; leave it out for the CPU")
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)  # torch emulates it on older GPUs
        else:
            fast = bfloat16_unit() is not None
        precision = self.precision if self.precision != "auto" else "bf16" if fast else "fp32"
        return replace(self, device=device, precision=precision)

    def label_format(self, columns: LabelColumns | None = None, validation: Validation | None = None) -> LabelFormat:
        """Return how label files are read: their columns, groups and scale."""
        columns = columns or LabelColumns()
        return LabelFormat(
            targets=columns.targets,
            rater=columns.rater,
            group_by=validation.group_by if validation else None,
            scale=self.label_scale,
            range=self.label_range,
        )

    def to_toml(self) -> dict[str, Any]:
        """Return all settings, resolved, as the tables of a TOML file; label_range only where it is not [0, 1]."""
        tables = ("head_options", "label_range", *TABLES)
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tables}
        if self.label_range != UNIT:
            plain["label_range"] = list(self.label_range)
        return plain | {name: dict(getattr(self, name)) for name in TABLES} | {self.head: dict(self.head_options)}


_SETTINGS = frozenset(f.name for f in fields(TrainSettings))
_AUGMENT = frozenset(f.name for f in fields(AugmentSettings))


def resolve_settings(config: StrPath | None = None, **overrides: Any) -> TrainSettings:
    """Resolve settings: defaults, then a TOML file, then keyword arguments that are not None.

    Args:
        config: settings file, or config.toml of a run.
        **overrides: settings. An option of augmentation (`mixup=0.2`) goes into its table, and a keyword that is no
            setting to the options of the head (`hidden=256`).

    Raises:
        TrainSettingsError: an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    from train_head.heads import HEADS

    values = read_config(config) if config is not None else {}
    given = {key: value for key, value in overrides.items() if value is not None}
    head = given.get("head", values.get("head", TrainSettings.head))
    _check_type("head", head)
    options = dict(values.get(head, {})) if head in HEADS else {}
    augment = dict(_table("augment", values.get("augment", {})))
    names = _SETTINGS - {"head_options", "augment"}
    for key, value in given.items():
        if key == "augment":
            augment |= _table(key, value)
        else:
            (values if key in names else augment if key in _AUGMENT else options)[key] = value
    values["augment"] = augment
    settings = {key: value for key, value in values.items() if key not in HEADS}
    for key, value in settings.items():
        _check_type(key, value)
    return TrainSettings(**settings, head_options=options)


def read_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read settings from KEY=VALUE, each value as in TOML; a value that is no TOML is a string.

    Raises:
        TrainSettingsError: there is no =.
    """
    values = {}
    for text in assignments:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals):
            raise TrainSettingsError(f"--set {text!r}: expected KEY=VALUE, such as --set mixup=0.2")
        try:
            values[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = value
    return values


def option_owners(key: str) -> list[str]:
    """Return the heads that have an option; none for a setting of the training."""
    from train_head.heads import HEADS

    kinds: dict[str, Any] = {name: head.Options for name, head in HEADS.items()}  # type: ignore[attr-defined]
    return [name for name, kind in kinds.items() if key not in _SETTINGS and key in {f.name for f in fields(kind)}]


def read_toml(path: StrPath, what: str, error: type[EmiError] = TrainSettingsError) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: of the file.
        what: kind of file, as errors call it.
        error: is raised.

    Raises:
        EmiError: no such file, or not TOML.
    """
    place = Path(path)
    if not place.is_file():
        raise error(f"there is no {what} at {place}")
    try:
        return tomllib.loads(place.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise error(f"{place} is not valid TOML: {wrong}") from wrong


def read_config(path: StrPath) -> dict[str, Any]:
    """Read a settings file, or a run's config.toml, whose record tables are left out.

    Raises:
        TrainSettingsError: no such file, not TOML, or an unknown key.
    """
    from train_head.heads import HEADS, head_options

    values = read_toml(path, "settings file")
    known = _SETTINGS - {"head_options"} | HEADS.keys()
    check_known("setting", [key for key in values if key not in RECORD_TABLES], known, f"{path}: ")
    for name in HEADS.keys() & values.keys():
        head_options(name, dict(_table(name, values[name])))
    _augment_settings(values.get("augment", {}))
    return {key: value for key, value in values.items() if key not in RECORD_TABLES}


def _table(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TrainSettingsError(f"{key} must be a table of options, got {value!r}")
    return value


def _augment_settings(options: Mapping[str, Any]) -> AugmentSettings:
    check_known("option of augment", _table("augment", options), _AUGMENT)
    return AugmentSettings(**options)


def _check_type(key: str, value: object) -> None:
    if key in ("augment", "label_range"):  # checked where they are read
        return
    expected = type(getattr(TrainSettings, key))
    fits = isinstance(value, int | float) if expected is float else isinstance(value, expected)
    if not fits or isinstance(value, bool) != (expected is bool):
        raise TrainSettingsError(f"setting {key} must be a {expected.__name__}, got {value!r}")
