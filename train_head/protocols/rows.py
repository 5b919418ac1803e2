"""The rows of an ablation: names, and the settings in which each differs from a base."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.paths import StrPath
from train_head.errors import TrainSettingsError, unknown
from train_head.training.settings import TrainSettings, option_owners, resolve_settings

SHARED = ("seed", "label_scale", "label_range")
"""Settings that all rows have in common: the labels are read once, and every row takes the same seeds."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as it is printed.
        overrides: settings in which it differs from the base, options of the head and of augmentation among them.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as a folder: `lstm-global-vector`."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


PAPER_ROWS = (
    Row("mean pooling", {"head": "mean"}),
    Row("LSTM", {"head": "lstm", "global_vector": False, "dropout": 0.0}),
    Row("LSTM + global vector", {"head": "lstm", "global_vector": True, "dropout": 0.0}),
    Row("LSTM + global vector + dropout", {"head": "lstm", "global_vector": True, "dropout": 0.1}),
)
"""The rows with a frozen backbone of the paper's Table 1 (arXiv 2403.11879), each with one part more."""


def rows_settings(
    rows: Sequence[Row], config: StrPath | None = None, **overrides: Any
) -> list[tuple[str, TrainSettings]]:
    """The settings of each row: a base, then what the row says.

    Args:
        rows: the rows.
        config: TOML file of the base; the tables of all heads may stand in it.
        **overrides: settings of the base; an option of a head goes to the rows whose head has it.

    Raises:
        TrainSettingsError: an unknown setting, or an option that no row's head has; a row sets the seed or the scale
            of the labels.
    """
    check_names([row.name for row in rows])
    given = {key: value for key, value in overrides.items() if value is not None}
    base = resolve_settings(config, **{k: v for k, v in given.items() if not option_owners(k)}).head
    settings, used = [], set[str]()
    for row in rows:
        for key in SHARED:
            if key in row.overrides:
                raise TrainSettingsError(f"row {row.name!r}: {key} is the same for all rows; leave it out there")
        head = row.overrides.get("head", base)
        own = {key: v for key, v in given.items() if not option_owners(key) or head in option_owners(key)}
        used |= own.keys()
        try:
            settings.append((row.name, resolve_settings(config, **(own | dict(row.overrides)))))
        except TrainSettingsError as error:
            raise TrainSettingsError(f"row {row.name!r}: {error}") from error
    for key in given.keys() - used:
        raise TrainSettingsError(f"no row's head has the option {key!r}; leave it out")
    return settings


def read_rows(path: StrPath) -> list[Row]:
    """Read rows from TOML: one `[[row]]` each, with a name and any settings.

    Raises:
        TrainSettingsError: no such file, not TOML, no rows, or a row without a name.
    """
    place = Path(path)
    if not place.is_file():
        raise TrainSettingsError(f"there is no file of rows at {place}")
    try:
        values = tomllib.loads(place.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainSettingsError(f"{place} is not valid TOML: {error}") from error
    for key in values:
        if key != "row":
            raise TrainSettingsError(f"{place}: {unknown('table', key, ['row'])}")
    tables = values.get("row", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        raise TrainSettingsError(f'{place} has no rows; write [[row]] and name = "…" for each')
    for number, table in enumerate(tables, 1):
        if not isinstance(table.get("name"), str):
            raise TrainSettingsError(f'{place}: row {number} has no name; write name = "…" in it')
    return [Row(table["name"], {k: v for k, v in table.items() if k != "name"}) for table in tables]


def check_names(names: Sequence[str]) -> None:
    """Refuse rows whose folders would be one.

    Raises:
        TrainSettingsError: no rows, a name without a letter or digit, or two that share a folder.
    """
    if not names:
        raise TrainSettingsError("an ablation needs at least one row")
    places: dict[str, str] = {}
    for name in names:
        place = Row(name).folder
        if not place:
            raise TrainSettingsError(f"the row {name!r} needs a name with a letter or a digit, for its folder")
        if place in places:
            raise TrainSettingsError(f"the rows {places[place]!r} and {name!r} share the folder {place}; rename one")
        places[place] = name
