"""Settings of a training run: defaults from the paper, a TOML file, then what the caller says."""

import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cache.paths import StrPath
from cache.settings import setting
from cache.system.machine import bfloat16_unit
from train_head.data.label_format import BOTH, UNIT, LabelColumns, LabelFormat, Range, parse_range
from train_head.data.names import UNNAMED
from train_head.errors import LabelError, TrainSettingsError, check_known, refuse
from train_head.toml_file import read_toml
from train_head.training.augment_settings import AugmentSettings
from train_head.training.stream_settings import StreamSettings, assign, option_table, own_settings, stream_tables
from train_head.validation import Validation

RECORD_TABLES = ("data", "features", "protocol", "finetune", "backbone", "versions", "licence")
"""Tables of a run's config.toml that record what it was made from, or are read elsewhere (`emi.finetuning`)."""
TABLES = ("augment", "streams", "fusion")
"""Tables of settings, beside those that hold a head's options."""
SELDOM = tuple(
    "label_range window hop overlap label_fps clock modality_dropout auxiliary micro_batch missing "
    "smooth smooth_rows".split()
)
"""Settings that a run records only where they are not the defaults."""
MASK, NEAREST = MISSING = ("mask", "nearest")
PRECISIONS, DEVICES = ("auto", "fp32", "bf16", "fp16"), ("auto", "cpu", "cuda")
_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("lr label_scale clip_value batch_size epochs", lambda value: value > 0, "be above 0"),
    ("lr label_scale clip_value weight_decay warmup_epochs label_fps auxiliary", math.isfinite, "be finite"),
    (
        "weight_decay warmup_epochs patience stop_after seed window hop label_fps auxiliary micro_batch smooth_rows",
        lambda value: value >= 0,
        "not be negative",
    ),
    ("seed", lambda value: value < 2**32, "be below 2^32"),
    ("ema modality_dropout", lambda value: 0 <= value < 1, "lie in [0, 1)"),
)
"""Names of settings, what their values must satisfy, and the same in words."""


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
    streams: Mapping[str, Any] = setting(
        dict, "Settings of single streams, which beat the others; in TOML the tables [streams.NAME].", option=None
    )
    fusion: str = setting("concat", "How several streams are joined: concat, late, crossattention or transformer.")
    fusion_options: Mapping[str, Any] = setting(dict, "Options of the fusion; in TOML the table [fusion].", option=None)
    clock: str = setting(
        "", "Stream at whose rows the fusion transformer joins the streams, for labels per clip; else the first."
    )
    modality_dropout: float = setting(
        0.0, "Chance of each stream of a training sample to be left out, never all of them."
    )
    auxiliary: float = setting(
        0.0, "Weight of a further loss per stream, of a regressor of its own in training; of several streams."
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
    micro_batch: int = setting(
        0,
        "Samples at a time that pass through the head, on a CPU; 0: all. The same loss with less memory, in one and a "
        "half times the time.",
        option=None,
    )
    epochs: int = setting(30, "Passes over the training clips.")
    stop_after: int = setting(0, "Stop after this many epochs of the schedule that --epochs sets; 0 trains all.")
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
    seed: int = setting(0, "Random seed of weights, order of clips, dropout and augmentation; with --seeds, the first.")
    precision: str = setting(
        "auto", "Matrix products: fp32, bf16, auto (bf16 where the processor has it), or fp16 to fine-tune on a GPU."
    )
    device: str = setting("auto", "cpu, cuda or auto.")
    label_scale: float = setting(1.0, "Divides the labels (100 for 0 to 100); predictions are on the divided scale.")
    label_range: Range = setting(
        UNIT, "-1,1 or 1,5: the ends of the labels' scale; predictions are on that scale.", metavar="MIN,MAX"
    )
    label_fps: float = setting(
        0.0, "Label rows per second, for labels per frame without times of their own; 0: one row per video frame."
    )
    window: int = setting(0, "Label rows per training sample, for labels per frame; 0 takes whole clips.")
    hop: int = setting(0, "Label rows from one window to the next; 0 takes the window.")
    overlap: str = setting(
        "mean",
        "Prediction where windows overlap: mean, or valid, which drops rows that did not see all they depend on.",
    )
    missing: str = setting(
        MASK,
        "Rows in which no face was found, for labels per frame: mask, or nearest, which takes the nearest with one.",
    )
    smooth: str = setting("none", "Smoothing of predictions per frame: none, mean or median, moving within each clip.")
    smooth_rows: int = setting(
        0,
        "Label rows on either side that smoothing takes; 0 chooses 0 to 65 in steps of 5, for each target, by the CCC "
        "of the validation clips.",
    )

    def __post_init__(self) -> None:
        from train_head.data.windows import OVERLAPS
        from train_head.heads import head_options
        from train_head.heads.fusions import fusion_options
        from train_head.losses import canonical, canonical_weighting
        from train_head.training.smoothing_kinds import KINDS, NO_SMOOTHING

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
        if self.stop_after > self.epochs:
            raise TrainSettingsError(f"stop_after must not be above epochs ({self.epochs}), got {self.stop_after}")
        if self.smooth_rows and self.smooth == NO_SMOOTHING:
            raise TrainSettingsError(
                f"smooth_rows ({self.smooth_rows}) needs a kind of smoothing: smooth mean or median"
            )
        choices: Mapping[str, Collection[str]] = {
            "precision": PRECISIONS,
            "device": DEVICES,
            "overlap": OVERLAPS,
            "missing": MISSING,
            "smooth": (NO_SMOOTHING, *KINDS),
        }
        for name, known in choices.items():
            check_known(name, [getattr(self, name)], known)
        object.__setattr__(self, "head_options", asdict(head_options(self.head, dict(self.head_options))))
        object.__setattr__(self, "fusion_options", asdict(fusion_options(self.fusion, dict(self.fusion_options))))
        streams = {name: own_settings(name, table, self._shared) for name, table in self.streams.items()}
        object.__setattr__(self, "streams", streams)

    @property
    def _shared(self) -> StreamSettings:
        return StreamSettings(head=self.head, head_options=self.head_options, standardise=self.standardise)

    def stream(self, name: str) -> StreamSettings:
        """Return how a stream is read: its own settings, else those of all."""
        return self._shared.changed_by(self.streams.get(name, {}))

    def of_streams(self, names: Collection[str]) -> "TrainSettings":
        """Return the settings for some of the streams: what names another is the default."""
        clock, query = self.clock, self.fusion_options.get("query", "")
        options = dict(self.fusion_options) | ({"query": ""} if query and query not in names else {})
        streams = {name: table for name, table in self.streams.items() if name in names}
        return replace(self, streams=streams, clock=clock if clock in names else "", fusion_options=options)

    def for_streams(self, names: Collection[str]) -> "TrainSettings":
        """Return the settings with a table for every stream, as a run of named streams records them.

        A table has what differs from the settings of all, so that these, given anew, hold for the other streams.

        Raises:
            TrainSettingsError: settings of a stream that is not there, a name that stands for something else, or a
                fusion of a stream without a name.
        """
        check_known("stream in the settings", self.streams, names)
        check_known("stream in clock", [self.clock] if self.clock else [], names)
        if tuple(names) == (UNNAMED,):
            if self.fusion != TrainSettings.fusion:
                raise TrainSettingsError(
                    f"fusion {self.fusion!r} joins named streams; name the cache: --cache NAME=PATH"
                )
            return self
        for name in names:
            check_stream_name(name)
        return replace(self, streams={name: self.streams.get(name, {}) for name in names})

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
            fps=self.label_fps,
        )

    def to_toml(self) -> dict[str, Any]:
        """Return all settings, resolved, as the tables of a TOML file.

        Those that few need are there only where they are not the defaults, and those of streams where these have names.
        """
        tables = ("head_options", "fusion_options", *TABLES, *SELDOM)
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tables}
        for f in fields(self):
            if f.name in SELDOM and (value := getattr(self, f.name)) != f.default:
                plain[f.name] = list(value) if isinstance(value, tuple) else value
        found = plain | {"augment": dict(self.augment)} | {self.head: dict(self.head_options)}
        if self.streams:
            found |= {"streams": dict(self.streams), "fusion": {"name": self.fusion, **self.fusion_options}}
        return found


_SETTINGS = frozenset(f.name for f in fields(TrainSettings))
_AUGMENT = frozenset(f.name for f in fields(AugmentSettings))


def check_stream_name(name: str) -> None:
    """Refuse a name that is no word of small letters, or that settings or torch's modules use for something else.

    Raises:
        TrainSettingsError: says what a name may be.
    """
    from torch import nn

    from train_head.heads import HEADS
    from train_head.heads.fusions import FUSIONS

    taken = {*HEADS, *FUSIONS, *RECORD_TABLES, *_SETTINGS, *_AUGMENT}
    of_torch = hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name)  # which hold streams by name
    problems = (
        (name in taken, "names a head, a fusion or a setting"),
        (not re.fullmatch(r"[a-z][a-z0-9_]*", name), "is not made of a-z, 0-9 and _"),
        (of_torch, "is a name that torch uses itself"),
    )
    advice = "take a word such as audio, face or text"
    refuse(*((there, f"{name!r} cannot name a stream: it {why}; {advice}") for there, why in problems))


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
    augment = dict(option_table("augment", values.get("augment", {})))
    streams = stream_tables(values.get("streams", {}))
    fusion = dict(_fusion_table(values.get("fusion", {})))
    names = _SETTINGS - {"head_options", "fusion_options", *TABLES}
    for key, value in given.items():
        table, dot, option = key.partition(".")
        if key == "augment":
            augment |= option_table(key, value)
        elif key == "streams":
            streams |= stream_tables(value)
        elif key == "fusion":
            fusion = _chosen(fusion, "name", _fusion_table(value))
        elif dot and table == "fusion":
            fusion[option] = value
        elif dot:
            streams.setdefault(table, {})
        else:
            (values if key in names else augment if key in _AUGMENT else options)[key] = value
    for name, part in streams.items():
        assign(part, {key.partition(".")[2]: v for key, v in given.items() if key.startswith(f"{name}.")}, head)
    settings = {key: value for key, value in values.items() if key not in HEADS and key not in TABLES}
    for key, value in settings.items():
        _check_type(key, value)
    return TrainSettings(
        **settings,
        augment=augment,
        streams=streams,
        fusion=fusion.pop("name", TrainSettings.fusion),
        fusion_options=fusion,
        head_options=options,
    )


def _chosen(table: dict[str, Any], key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with what is given; the options of another name are forgotten."""
    there = table.get(key, TrainSettings.fusion)
    return {**(table if given.get(key, there) == there else {}), **given}


def _fusion_table(value: object) -> Mapping[str, Any]:
    """Return the table of a fusion that is given by its name, or as a table."""
    return {"name": value} if isinstance(value, str) else option_table("fusion", value)


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

    kinds: dict[str, Any] = {name: head.Options for name, head in HEADS.items()}
    return [name for name, kind in kinds.items() if key not in _SETTINGS and key in {f.name for f in fields(kind)}]


def read_config(path: StrPath) -> dict[str, Any]:
    """Read a settings file, or a run's config.toml, whose record tables are left out.

    Raises:
        TrainSettingsError: no such file, not TOML, or an unknown key.
    """
    from train_head.heads import HEADS, head_options

    values = read_toml(path, "settings file")
    known = _SETTINGS - {"head_options", "fusion_options"} | HEADS.keys()
    check_known("setting", [key for key in values if key not in RECORD_TABLES], known, f"{path}: ")
    for name in HEADS.keys() & values.keys():
        head_options(name, dict(option_table(name, values[name])))
    _augment_settings(values.get("augment", {}))
    return {key: value for key, value in values.items() if key not in RECORD_TABLES}


def _augment_settings(options: Mapping[str, Any]) -> AugmentSettings:
    check_known("option of augment", option_table("augment", options), _AUGMENT)
    return AugmentSettings(**options)


def _check_type(key: str, value: object) -> None:
    if key == "label_range":  # checked where it is read
        return
    expected = type(getattr(TrainSettings, key))
    fits = isinstance(value, int | float) if expected is float else isinstance(value, expected)
    if not fits or isinstance(value, bool) != (expected is bool):
        raise TrainSettingsError(f"setting {key} must be a {expected.__name__}, got {value!r}")
