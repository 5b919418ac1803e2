"""Settings of a training run: defaults from the paper, a TOML file, then what the caller says."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cache.container import StrPath
from train_head.errors import TrainSettingsError
from train_head.heads import HEADS, head_options
from train_head.losses import LOSSES
from train_head.suggest import unknown

RECORD_TABLES = ("data", "features")
"""Tables of a run's config.toml that record what it was made from; they are no settings."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a head is trained; the defaults are the paper's (arXiv 2403.11879, section 4).

    Attributes:
        head: a name in `HEADS`.
        head_options: options of that head; in TOML the table of its name (`[lstm]`).
        loss: a name in `LOSSES`.
        lr: peak learning rate of AdamW.
        weight_decay: AdamW's.
        batch_size: clips per step.
        epochs: passes over the training clips.
        warmup_epochs: epochs over which the learning rate rises; from there a cosine takes it to 0, step by step.
        clip_value: gradients are clipped to this absolute value.
        patience: stop after so many epochs without a better validation Pearson; 0 never stops.
        seed: of the weights, the order of the clips and dropout.
        label_scale: labels are divided by it.
    """

    head: str = "lstm"
    head_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "mse"
    lr: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 32
    epochs: int = 30
    warmup_epochs: float = 1.0
    clip_value: float = 100.0
    patience: int = 0
    seed: int = 0
    label_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise TrainSettingsError(unknown("loss", self.loss, LOSSES))
        for name, low in (("lr", 0.0), ("label_scale", 0.0), ("clip_value", 0.0), ("batch_size", 0), ("epochs", 0)):
            if not getattr(self, name) > low:
                raise TrainSettingsError(f"{name} must be above {low:g}, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "patience"):
            if getattr(self, name) < 0:
                raise TrainSettingsError(f"{name} must not be negative, got {getattr(self, name)}")
        resolved = asdict(head_options(self.head, dict(self.head_options)))
        object.__setattr__(self, "head_options", resolved)

    def to_toml(self) -> dict[str, Any]:
        """All settings, resolved, as the tables of a TOML file."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "head_options"}
        return plain | {self.head: dict(self.head_options)}


def resolve_settings(config: StrPath | None = None, **overrides: Any) -> TrainSettings:
    """Defaults, then a TOML file, then keyword arguments that are not None.

    A keyword that is an option of the head (`hidden=256`) goes to the head.

    Raises:
        TrainSettingsError: an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    values = read_config(config) if config is not None else {}
    given = {key: value for key, value in overrides.items() if value is not None}
    head = given.get("head", values.get("head", TrainSettings.head))
    options = dict(values.get(head, {})) if head in HEADS else {}
    names = {f.name for f in fields(TrainSettings)} - {"head_options"}
    for key, value in given.items():
        (values if key in names else options)[key] = value
    settings = {key: value for key, value in values.items() if key not in HEADS}
    for key, value in settings.items():
        _check_type(key, value)
    return TrainSettings(**settings, head_options=options)


def with_seed(settings: TrainSettings, seed: int) -> TrainSettings:
    """The same settings with another seed."""
    return replace(settings, seed=seed)


def read_config(path: StrPath) -> dict[str, Any]:
    """Read a settings file, or a run's config.toml, whose record tables are left out.

    Raises:
        TrainSettingsError: no such file, not TOML, or an unknown key.
    """
    place = Path(path)
    if not place.is_file():
        raise TrainSettingsError(f"there is no settings file at {place}")
    try:
        values = tomllib.loads(place.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainSettingsError(f"{place} is not valid TOML: {error}") from error
    known = {f.name for f in fields(TrainSettings)} - {"head_options"} | HEADS.keys()
    for key in values:
        if key not in known and key not in RECORD_TABLES:
            raise TrainSettingsError(f"{place}: {unknown('setting', key, known)}")
    for name in HEADS.keys() & values.keys():
        head_options(name, values[name])
    return {key: value for key, value in values.items() if key not in RECORD_TABLES}


def _check_type(key: str, value: object) -> None:
    expected = type(getattr(TrainSettings, key))
    fits = isinstance(value, int | float) if expected is float else isinstance(value, expected)
    if not fits or isinstance(value, bool):
        raise TrainSettingsError(f"setting {key} must be a {expected.__name__}, got {value!r}")
