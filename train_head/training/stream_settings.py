"""Settings of single streams: what each has of its own; the rest is as for all streams."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from train_head.errors import TrainSettingsError, check_known

OWN = ("head", "standardise")
"""Settings that a stream can have of its own, beside the options of its head."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How one stream is read.

    Attributes:
        head: whose encoder reads it; with one stream and targets per clip, the head.
        head_options: of that head.
        standardise: scale every feature to mean 0 and standard deviation 1 over the training rows.
    """

    head: str
    head_options: Mapping[str, Any]
    standardise: bool

    def changed_by(self, table: Mapping[str, Any]) -> "StreamSettings":
        """Return these settings with those of a table `[streams.NAME]`, as `own_settings` gives it."""
        head = table.get("head", self.head)
        options = dict(self.head_options) if head == self.head else {}
        given = {key: table[key] for key in OWN if key in table}
        return replace(self, **given, head_options=options | dict(table.get(head, {})))


def own_settings(name: str, table: object, shared: StreamSettings) -> dict[str, Any]:
    """Check the table of a stream and return what it changes of the settings of all streams.

    A stream with another head than all has all options of its head of its own.

    Args:
        name: of the stream.
        table: as given: `head`, `standardise`, and tables of options by head, of which that of its head counts.
        shared: the settings of all streams.

    Raises:
        TrainSettingsError: an unknown setting, or a value that it cannot have.
    """
    from train_head.heads import HEADS, head_options

    given = option_table(f"streams.{name}", table)
    check_known(f"setting of stream {name!r}", given, {*OWN, *HEADS})
    head, standardise = given.get("head", shared.head), given.get("standardise", shared.standardise)
    if not isinstance(standardise, bool):
        raise TrainSettingsError(f"streams.{name}.standardise must be true or false, got {standardise!r}")
    usual = shared.head_options if head == shared.head else {}
    options = {**usual, **option_table(f"streams.{name}.{head}", given.get(head, {}))}
    resolved = asdict(head_options(head, options))
    own = {key: value for key, value in resolved.items() if key not in usual or value != usual[key]}
    values = {"head": head, "standardise": standardise}
    return {key: value for key, value in values.items() if value != getattr(shared, key)} | ({head: own} if own else {})


def stream_tables(value: object) -> dict[str, dict[str, Any]]:
    """Return the tables `[streams.NAME]` of a settings file, by name.

    Raises:
        TrainSettingsError: one of them is no table.
    """
    return {name: dict(option_table(f"streams.{name}", t)) for name, t in option_table("streams", value).items()}


def assign(table: dict[str, Any], given: Mapping[str, Any], head: str) -> None:
    """Put settings of one stream, such as `head` and `hidden`, where they stand in its table."""
    table |= {key: given[key] for key in OWN if key in given}
    options = {key: value for key, value in given.items() if key not in OWN}
    if options:
        own = table.get("head", head)
        table[own] = dict(table.get(own, {})) | options


def option_table(key: str, value: object) -> Mapping[str, Any]:
    """Return a table of options.

    Raises:
        TrainSettingsError: it is none.
    """
    if not isinstance(value, Mapping):
        raise TrainSettingsError(f"{key} must be a table of options, got {value!r}")
    return value
