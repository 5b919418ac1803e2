"""The space of a sweep: which settings are tried, read from TOML.

head = ["lstm", "attention"]                  # one of these
loss = ["ccc", "0.7*ccc + 0.3*mse"]
lr = { log = [1e-5, 1e-2] }                   # a number, evenly on a logarithmic scale
weight_decay = { uniform = [0.0, 0.1] }       # a number, evenly
batch_size = { int = [16, 64], step = 16 }    # a whole number, on a grid
epochs = 20                                   # the same in every trial

[lstm]                                        # drawn only where the head is lstm
hidden = { log_int = [64, 512] }

[augment]
mixup = [0.0, 0.2, 0.4]

[face]                                        # of one of several streams
head = ["mean", "mlp"]
hidden = [32, 64]                             # drawn only where the head of the stream has it

[fusion]
name = ["concat", "late"]
hidden = [64, 256]                            # drawn only where the fusion has it

Of several streams, `streams = ["audio", "audio+face"]` tries heads on some of them. What is set for a stream is then
drawn only where the trial reads it.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice, product
from typing import Any

from optuna import Trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

from cache.paths import StrPath
from train_head.errors import TrainSettingsError, refuse, unknown
from train_head.heads import FUSIONS, HEADS
from train_head.heads.fusions import DEFAULT_FUSION
from train_head.toml_file import read_toml
from train_head.training.settings import TABLES, TrainSettings, option_owners, read_config, resolve_settings
from train_head.training.stream_settings import stream_tables

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
HEAD, STREAMS, FUSION, FUSION_NAME = "head", "streams", "fusion", "fusion.name"
SHARED = ("seed", "label_scale", "label_range", "label_fps", "device", "precision")
"""Settings that all trials have in common: given beside the space, not in it."""
OF_SEVERAL = ("clock", "modality_dropout", "auxiliary")
"""Settings that change nothing where a trial reads one stream."""
COMBINATIONS = 1000
"""Tried at most before a value that cannot stand alone is refused."""
RANGES = ("log", "uniform", "int", "log_int")
_SETTINGS = frozenset(field.name for field in fields(TrainSettings))


@dataclass(frozen=True)
class Space:
    """What is tried.

    Attributes:
        drawn: distributions by name, first those that decide which others apply; an option of one head is named
            `lstm.hidden`, one of augmentation `augment.mixup`, and a setting of one stream `face.head`.
        fixed: what every trial has, by the same names.
        base: settings that override the file of settings, and that the space overrides.
        config: TOML file of settings, or None.
    """

    drawn: Mapping[str, Distribution]
    fixed: Mapping[str, Any]
    base: Mapping[str, Any]
    config: StrPath | None = None

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Draw all that applies to the streams, heads and fusion that were drawn; values by name."""
        values: dict[str, Any] = {}
        for name, distribution in self.drawn.items():
            if self.applies(name, values):
                values[name] = _suggest(trial, name, distribution)
        return values

    def settings(self, values: Mapping[str, Any], **others: Any) -> TrainSettings:
        """The settings of a trial, for the streams that it reads.

        Args:
            values: as drawn, by name.
            **others: settings that override all.

        Raises:
            TrainSettingsError: the values do not go together.
        """
        of_space = [(name, value) for name, value in [*self.fixed.items(), *values.items()] if name != STREAMS]
        chosen = [(name, value) for name, value in [*self.base.items(), *of_space] if self.applies(name, values)]
        given: dict[str, Any] = {}
        augment: dict[str, Any] = {}
        if FUSION_NAME in dict(chosen):  # a table of its own, without the options of another fusion
            given[FUSION] = {"name": self.fusion(values)}
            chosen = [(name, value) for name, value in chosen if name not in (FUSION, FUSION_NAME)]
        for name, value in chosen:
            table, _, key = name.rpartition(".")
            if table == "augment":
                augment[key] = value
            else:
                given[key if table in HEADS else name] = value
        tables = {"augment": augment} if augment else {}
        settings = resolve_settings(self.config, **(given | {HEAD: self.head(values)} | tables | others))
        if FUSION_NAME in self.drawn and not FUSIONS[settings.fusion].by_times:
            settings = replace(settings, clock="")
        streams = self.subset(values)
        return settings if streams is None else settings.of_streams(streams)

    def subset(self, values: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return the names of the streams that a trial with these values reads; None for all that have caches."""
        chosen = {**self.fixed, **values}.get(STREAMS)
        return None if chosen is None else _subset(chosen)

    @property
    def subsets(self) -> list[tuple[str, ...]]:
        """The streams of every choice of `streams`; empty where all trials read all."""
        choices = self.values(STREAMS) or ([self.fixed[STREAMS]] if STREAMS in self.fixed else [])
        return [_subset(choice) for choice in choices]

    def values(self, name: str) -> tuple[Any, ...]:
        """Return the values that can be drawn for a setting: all choices, or both bounds; empty if it is fixed."""
        distribution = self.drawn.get(name)
        if distribution is None:
            return ()
        if isinstance(distribution, CategoricalDistribution):
            return tuple(distribution.choices)
        return distribution.low, distribution.high

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, equal for equal spaces, whatever their files are called."""
        return {
            "drawn": {name: json.loads(distribution_to_json(d)) for name, d in self.drawn.items()},
            "fixed": dict(self.fixed),
            "base": dict(self.base),
            "config": read_config(self.config) if self.config is not None else {},
        }

    def applies(self, name: str, values: Mapping[str, Any]) -> bool:
        """Return whether a trial has a setting, given the streams, heads and fusion among its values."""
        table, _, key = name.rpartition(".")
        if table in HEADS:
            return table == self.head(values)
        streams = self.subset(values)
        if table == FUSION:
            fusion, owners = self.fusion(values), _fusions_with(key)
            alone = streams is not None and len(streams) == 1 and fusion == DEFAULT_FUSION
            return key == "name" or not (alone or (owners and fusion not in owners))
        if streams is not None and (table not in ("", *TABLES, *streams) or (name in OF_SEVERAL and len(streams) == 1)):
            return False
        owners = [] if table in TABLES else option_owners(key)
        return not owners or self.head(values, table) in owners

    def head(self, values: Mapping[str, Any], stream: str = "") -> str:
        """Return the head of a trial with these values, or that of one of its streams."""
        known = {**self.base, **self.fixed, **values}
        shared = known.get(HEAD, self._config.get(HEAD, TrainSettings.head))
        own = self._config["streams"].get(stream, {}).get(HEAD, shared)
        return str(known.get(f"{stream}.{HEAD}", own))

    def fusion(self, values: Mapping[str, Any]) -> str:
        """Return the fusion of a trial with these values."""
        known = {**self.base, **self.fixed, **values}
        given = known.get(FUSION, self._config.get(FUSION, DEFAULT_FUSION))
        named = given.get("name", DEFAULT_FUSION) if isinstance(given, Mapping) else given
        return str(known.get(FUSION_NAME, named))

    @property
    def streams(self) -> set[str]:
        """Names of tables, in the space and beside it, that can only be those of streams."""
        tables = {_table(name) for name in [*self.base, *self.fixed, *self.drawn]}
        return (tables - {"", *HEADS, *TABLES}) | set(self._config["streams"])

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The file of settings, with the tables of streams that override it."""
        config = read_config(self.config) if self.config is not None else {}
        streams = stream_tables(config.get("streams", {})) | stream_tables(self.base.get("streams", {}))
        return config | {"streams": streams}


def read_space(path: StrPath, config: StrPath | None = None, **base: Any) -> Space:
    """Read a space and check that each of its values may be set.

    Args:
        path: TOML file, as above.
        config: TOML file of the settings that the space does not name.
        **base: settings that override that file; None is left out.

    Raises:
        TrainSettingsError: no such file, not TOML, nothing to try, an unknown or shared setting, a range that is none,
            a value out of range; names the setting.
    """
    values = read_toml(path, "file of a space")
    drawn: dict[str, Distribution] = {}
    fixed: dict[str, Any] = {}
    try:
        for name, value in _flat(values):
            if name in SHARED:
                raise TrainSettingsError(f"{name} is the same for all trials; give it with --set {name}=VALUE instead")
            if name == STREAMS:
                _check_subsets(value)
            if isinstance(value, list | dict):
                drawn[name] = _distribution(name, value)
            else:
                fixed[name] = value
        if not drawn:
            raise TrainSettingsError("nothing to try; write lr = { log = [1e-5, 1e-2] } or head = [...] in it")
        drawn = {name: drawn[name] for name in sorted(drawn, key=_rank)}
        space = Space(drawn, fixed, {key: value for key, value in base.items() if value is not None}, config)
        _check(space)
    except TrainSettingsError as error:
        raise TrainSettingsError(f"{path}: {error}") from error
    return space


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values; those in the table of a head, of augmentation, of a stream or of the fusion as `table.key`."""
    for key, value in values.items():
        own = isinstance(value, dict) and key not in _SETTINGS and not set(value) & set(RANGES)
        plain = key in (FUSION, STREAMS) and not isinstance(value, dict)
        if plain or (key not in HEADS and key not in TABLES and not own):
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{inner}", content) for inner, content in value.items())
        else:
            raise TrainSettingsError(f"{key} must be a table of options, got {value!r}")


def _rank(name: str) -> int:
    """Return the place of a setting in the order of drawing: what decides whether others apply comes before them."""
    deciding = (STREAMS, HEAD, FUSION, FUSION_NAME)
    return deciding.index(name) if name in deciding else len(deciding) + (not name.endswith(f".{HEAD}"))


def _subset(choice: str) -> tuple[str, ...]:
    """Return the names in `audio+face`, sorted, as the streams of a run are.

    Raises:
        TrainSettingsError: one is empty, or there twice.
    """
    names = sorted(name.strip() for name in choice.split("+"))
    if not all(names) or len(set(names)) < len(names):
        raise TrainSettingsError(f"streams: {choice!r} must be names of different streams with + between them")
    return tuple(names)


def _check_subsets(value: object) -> None:
    """Refuse choices of streams that are none, or two of the same streams."""
    choices: list[Any] = value if isinstance(value, list) else [value]
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise TrainSettingsError(f'streams must be choices such as ["audio", "audio+face"], got {value!r}')
    subsets = [_subset(choice) for choice in choices]
    for number, (choice, streams) in enumerate(zip(choices, subsets, strict=True)):
        refuse((streams in subsets[:number], f"streams: {choice!r} is there twice; leave one out"))


def _fusions_with(key: str) -> list[str]:
    """Return the fusions that have an option."""
    return [name for name, fusion in FUSIONS.items() if key in {field.name for field in fields(fusion.Options)}]


def _distribution(name: str, value: list[Any] | dict[str, Any]) -> Distribution:
    if isinstance(value, list):
        if not value or not all(isinstance(choice, bool | int | float | str) for choice in value):
            raise TrainSettingsError(f"{name}: the choices must be numbers, strings, true or false, got {value!r}")
        return CategoricalDistribution(value)
    kinds = [key for key in value if key != "step"]
    if len(kinds) != 1 or kinds[0] not in RANGES:
        kind = next((key for key in kinds if key not in RANGES), "")
        hint = unknown("kind of range", kind, RANGES) if kind else f"one of {', '.join(RANGES)} is needed"
        raise TrainSettingsError(f"{name}: {hint}; write {name} = {{ log = [1e-5, 1e-2] }}, for one")
    kind, step = kinds[0], value.get("step")
    bounds, whole = value[kind] if isinstance(value[kind], list) else [], kind in ("int", "log_int")
    numbers = [*bounds, *([] if step is None else [step])]
    plain = (isinstance(n, int if whole else int | float) and not isinstance(n, bool) for n in numbers)
    if len(bounds) != 2 or not all(plain) or not all(map(math.isfinite, numbers)):
        what = "whole numbers" if whole else "finite numbers"
        raise TrainSettingsError(f"{name}: {kind} needs a lowest and a highest value, both {what}, got {value!r}")
    log, (low, high) = kind in ("log", "log_int"), bounds
    if step is not None and step > 0 and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise TrainSettingsError(f"{name}: a step of {step} from {low} does not come to {high}")
    try:
        if whole:
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as error:
        raise TrainSettingsError(f"{name}: {error}") from error


def _suggest(trial: Trial, name: str, distribution: Distribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, int(low), int(high), step=distribution.step, log=log)
    return trial.suggest_float(name, low, high, step=distribution.step, log=log)


def _check_value(space: Space, heads: Mapping[str, Any], name: str, value: Any) -> None:
    """Set a value beside some heads; if that is refused, beside other values too, as one may need the other."""
    try:
        space.settings({**heads, name: value})
    except TrainSettingsError:
        others = [
            one for one in space.drawn if one not in (*heads, name) and space.applies(one, {**heads, name: value})
        ]
        for values in islice(product(*map(space.values, others)), COMBINATIONS):
            with contextlib.suppress(TrainSettingsError):
                space.settings({**dict(zip(others, values, strict=True)), **heads, name: value})
                return
        raise


def _check(space: Space) -> None:
    """Set each value, for each head, so that a mistake shows before the first trial."""
    for head in space.values(HEAD) or (space.head({}),):
        space.settings({HEAD: head})
    given = {name: _choices_before(space, name) for name in [*space.drawn, *space.fixed, *space.base]}
    used = {name: [before for before in choices if space.applies(name, before)] for name, choices in given.items()}
    for name in space.drawn:
        for before in used[name] if name != HEAD else ():
            for value in space.values(name):
                _check_value(space, before, name, value)
    for name in [*space.drawn, *space.fixed]:
        owners = [f"{head}.{name}" for head in option_owners(name) if f"{head}.{name}" in given]
        if owners:
            raise TrainSettingsError(
                f"{name} stands there for all heads, and {owners[0]} for one; leave one of them out"
            )
    for name in given:
        refuse((not used[name], _why_never(space, name, given[name])))


def _why_never(space: Space, name: str, before: Sequence[Mapping[str, Any]]) -> str:
    """Return why no trial has a setting, given the choices on which that depends."""
    table, alone = _table(name), bool(space.subsets) and all(len(streams) == 1 for streams in space.subsets)
    if table == FUSION:
        fusions = ", ".join(dict.fromkeys(map(space.fusion, before)))
        what = f"is no option of {fusions}{' of one stream' if alone else ''}, the only fusions tried"
    elif name in OF_SEVERAL:
        what = "is of several streams, and every choice of `streams` is one"
    elif table in space.streams and not any(table in streams for streams in space.subsets or [(table,)]):
        what = "is of a stream that no choice of `streams` has"
    else:
        heads = dict.fromkeys(space.head(one, table) for one in before)
        what = f"is no option of {', '.join(heads)}, the only heads tried"
    return f"{name} {what}; leave it out"


def _choices_before(space: Space, name: str) -> list[dict[str, Any]]:
    """Return every choice of what decides whether a setting applies: the streams, the heads, and the fusion."""
    table = _table(name)
    deciding = [HEAD, f"{table}.{HEAD}"]
    if name in OF_SEVERAL or table not in ("", "augment", *HEADS):
        deciding.append(STREAMS)
    if table == FUSION:
        deciding += [FUSION, FUSION_NAME]
    drawn = [one for one in deciding if one in space.drawn and one != name]
    return [dict(zip(drawn, values, strict=True)) for values in product(*map(space.values, drawn))]


def _table(name: str) -> str:
    """Return the table in which a setting stands: that of a head, `augment`, `fusion`, a stream, or "" for none."""
    return name.rpartition(".")[0]
