"""Options of the commands: those that several share, and those that are made of settings dataclasses.

A setting is typed once, as a field of its dataclass (`cache.settings.setting`): `takes` adds an option for each to a
command, and `cache.settings.take` turns what was given into the dataclass.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from cache.settings import setting

if TYPE_CHECKING:
    from dataclasses import Field

    from _typeshed import DataclassInstance

Given = dict[str, Any]
"""Options that were given, by name: the argument `given` of a command with `takes`."""

Media = Annotated[str, typer.Option(help="Folder of the media, a CSV with a Filename column, or a text list.")]
MediaRoot = Annotated[
    Path | None, typer.Option(help="Where the paths of a CSV or list start [default: its own folder].")
]
Backbone = Annotated[str, typer.Option(help="silero, a Hugging Face id, or a local folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face id [default: main].")]
Caches = Annotated[list[str], typer.Option(help="Feature cache; repeat it for clips spread over several.")]

Track = Annotated[
    int | None,
    typer.Option(metavar="N", help="Audio track, counted from 1 [default: the one marked default, else the first]."),
]
AllowTruncated = Annotated[
    bool, typer.Option("--allow-truncated", help="Use files that are cut off or damaged as far as they decode.")
]

Train = Annotated[Path, typer.Option(help="Label CSV of the training split.")]
Valid = Annotated[Path, typer.Option(help="Label CSV of the validation split, by which runs are compared.")]
BestEpochValid = Annotated[
    Path | None, typer.Option(help="Label CSV by which the best epoch is chosen; with --folds, more clips to cut.")
]
Test = Annotated[Path | None, typer.Option(help="CSV of a third split to predict; targets may be missing.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings; options override it.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as in a TOML file: --set ema=0.99; repeat."),
]
LabelScale = Annotated[
    float | None, typer.Option(help="100 for labels from 0 to 100; predictions stay between 0 and 1 [default: 1].")
]
LabelRange = Annotated[
    str | None,
    typer.Option(
        metavar="MIN,MAX", help="-1,1 or 1,5: ends of the labels' scale, which predictions keep [default: 0,1]."
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Label columns to predict [default: every column of numbers]."),
]
Rater = Annotated[
    str | None, typer.Option(help="Label column that names the rater, where clips have a row for each of several.")
]
ResampleBy = Annotated[
    str | None,
    typer.Option(
        "--group-by", help="Resample whole groups, such as a speaker's clips: label column, or regex on Filename."
    ),
]
RunsLabelScale = Annotated[
    float | None, typer.Option("--label-scale", help="100 for labels from 0 to 100 [default: as the runs].")
]
SkipUncached = Annotated[bool, typer.Option("--skip-missing", help="Leave out labelled clips that no cache holds.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out labelled clips whose media are missing or unreadable.")
]
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
    dropout: float | None = setting(None, "Between LSTM layers.", shown="0.1")
    global_vector: bool | None = setting(None, "Put the time mean of the input beside the last state.", shown="on")
    output: str | None = setting(None, "linear, tanh or sigmoid.", shown="linear")


def takes(*kinds: type["DataclassInstance"], only: str = "", **helps: str) -> Callable[[Callable[..., None]], Any]:
    """Add options to a command for the fields of dataclasses; it gets those that were given as `given`.

    Args:
        *kinds: dataclasses whose fields have help texts.
        only: names of the fields that become options, separated by spaces; all by default.
        **helps: help texts of options that mean something else in this command.
    """
    wanted = set(only.split())

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        typed = [parameter for parameter in signature.parameters.values() if parameter.name != "given"]
        added = {
            name: _parameter(name, field, get_type_hints(kind)[field.name], helps.get(name, field.metadata["help"]))
            for kind in kinds
            for field in fields(kind)
            if (name := field.metadata.get("option", field.name)) and (not wanted or name in wanted)
        }

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in added}
            command(**values, given={name: value for name, value in given.items() if value is not None})

        parameters = [*typed, *added.values()]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, field: "Field[Any]", hint: Any, text: str) -> inspect.Parameter:
    kind = next((one for one in get_args(hint) or (hint,) if one is not NoneType), str)
    kind = kind if kind in (bool, int, float, str) and not isinstance(field.default, tuple) else str
    shown = field.metadata.get("shown") or _shown(field.default)
    text = text.removesuffix(".") + (f" [default: {shown}]." if shown else ".")
    option = typer.Option(metavar=field.metadata.get("metavar"), help=text)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(f"{part:g}" for part in default)
    return f"{default:g}" if isinstance(default, float) else "" if default is None else str(default)
