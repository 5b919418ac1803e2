"""Read a TOML file that a user names."""

import tomllib
from pathlib import Path
from typing import Any

from cache.errors import EmiError
from cache.paths import StrPath
from train_head.errors import TrainSettingsError


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
