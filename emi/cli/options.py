"""Options of the commands: those that several share, and those that are made of settings dataclasses.

A setting is typed once, as a field of its dataclass (`cache.settings.setting`): `takes` adds an option for each to a
command, and `cache.settings.take` turns what was given into the dataclass.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from cache.settings import setting, take
from train_head.data.label_format import LabelColumns
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

Given = dict[str, Any]
"""Options that were given, by name: the argument `given` of a command with `takes`."""

Media = Annotated[str, typer.Option(help="Folder of the media, a CSV with a Filename column, or a text list.")]
Backbone = Annotated[str, typer.Option(help="silero, a Hugging Face id, or a local folder.")]
Caches = Annotated[
    list[str],
    typer.Option(
        metavar="[NAME=]PATH",
        help="Feature cache; repeat it for clips spread over several, or with names for streams.",
    ),
]

Train = Annotated[Path, typer.Option(help="Label CSV of the training split.")]
Valid = Annotated[Path, typer.Option(help="Label CSV of the validation split, by which runs are compared.")]
BestEpochValid = Annotated[
    Path | None, typer.Option(help="Label CSV by which the best epoch is chosen; with --folds, more clips to cut.")
]
Test = Annotated[Path | None, typer.Option(help="CSV of a third split to predict; targets may be missing.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings; options override it.")]
CommonConfig = Annotated[Path | None, typer.Option(help="TOML file of settings that the rows have in common.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as in a TOML file: --set ema=0.99; repeat."),
]
SkipUncached = Annotated[bool, typer.Option("--skip-missing", help="Leave out labelled clips that no cache holds.")]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Refuse labelled clips that lack this stream, or drop them with --skip-missing; repeat."
    ),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=REGEX",
        help="Where ids of labels differ from those of the stream NAME: the first group of the pattern is the stream's "
        "id. aff-wild2 alone lets ID_left and ID_right share the sound of ID; repeat.",
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out labelled clips whose media are missing or unreadable.")
]
RESAMPLED = "Resample whole groups, such as a speaker's clips: a label column, or a regular expression on Filename"
Json = Annotated[Path | None, typer.Option("--json", help="Write all numbers here as JSON.")]
RowSeeds = Annotated[int, typer.Option(min=1, help="Runs per row.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="The same as --tracker tensorboard.")]
_TRACKER = (
    "Also send each epoch's figures to a tracker: tensorboard (files in RUN/tensorboard), wandb, mlflow, trackio, aim, "
    "comet_ml, clearml, dvclive or swanlab; repeat."
)
Tracker = Annotated[list[str] | None, typer.Option("--tracker", metavar="NAME", help=_TRACKER)]
TrackerOfHead = Annotated[list[str] | None, typer.Option("--tracker", "--track", metavar="NAME", help=_TRACKER)]
"""`--track` is an audio track where media are read."""


@dataclass
class HeadOptions:
    """Options of the paper's head that have their own option; others are given by --set."""

    hidden: int | None = setting(None, "Size of the LSTM's state; 0 takes the input's.", shown="0")
    layers: int | None = setting(None, "LSTM layers.", shown="2")
    dropout: float | None = setting(None, "Dropout between LSTM layers.", shown="0.1")
    global_vector: bool | None = setting(None, "Put the time mean of the input beside the last state.", shown="on")
    output: str | None = setting(None, "Activation of the output: linear, tanh or sigmoid.", shown="linear")


LABELS = ((TrainSettings, "label_scale label_range"), LabelColumns, (Validation, "group_by"))
"""Settings of commands that read label files, for `takes`."""
TRAINING = (TrainSettings, HeadOptions, LabelColumns, Validation)
"""Settings of commands that train heads, for `takes`."""


def label_settings(given: Given) -> tuple[LabelColumns, Validation]:
    """Make the settings of label files of what was given; the rest stays in `given`."""
    return take(LabelColumns, given), take(Validation, given)


def takes(*settings: type[Any] | tuple[type[Any], str], **helps: str) -> Callable[[Callable[..., None]], Any]:
    """Add options to a command for the fields of dataclasses; it gets those that were given as `given`.

    Args:
        *settings: dataclasses whose fields have help texts; with one, names of the fields that become options,
            separated by spaces, where not all do.
        **helps: help texts of options that mean something else in this command; one may name its own `[default: …]`.
    """
    added = [
        _parameter(name, field, get_type_hints(kind)[field.name], helps.get(name, field.metadata["help"]))
        for kind, wanted in (one if isinstance(one, tuple) else (one, "") for one in settings)
        for field in fields(kind)
        if (name := field.metadata.get("option", field.name)) and (not wanted or name in wanted.split())
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {option.name: values.pop(option.name) for option in added}
            command(**values, given={name: value for name, value in given.items() if value is not None})

        signature = inspect.signature(command, eval_str=True)
        parameters = [*(one for one in signature.parameters.values() if one.name != "given"), *added]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, field: Field[Any], hint: Any, text: str) -> inspect.Parameter:
    kind = next((one for one in get_args(hint) or (hint,) if one in (bool, int, float, str)), str)
    if isinstance(field.default, tuple):  # typed as one text
        kind = str
    shown = "" if "[default: " in text else shown_default(field)
    text = text.removesuffix(".") + (f" [default: {shown}]." if shown else ".")
    parser = _number_or(field.metadata["none"]) if "none" in field.metadata else None
    option = typer.Option(metavar=field.metadata.get("metavar"), help=text, parser=parser)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _number_or(none: str) -> Callable[[str], float | str]:
    """Return a parser of numbers that keeps the word for None, which `take` understands."""

    def number(text: str) -> float | str:
        return text if text == none else float(text)

    return number


def shown_default(field: Field[Any]) -> str:
    """Return the default of a setting as help texts and docs show it; "" where there is none."""
    default = field.metadata.get("shown", field.default)
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(f"{part:g}" for part in default)
    return "" if default in (None, MISSING) else f"{default:g}" if isinstance(default, float) else str(default)
