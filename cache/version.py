"""The version of emi, whose distribution is named `emi-mimicry`: `emi` on PyPI is another project."""

import contextlib
import tomllib
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "emi-mimicry"


def version() -> str:
    """Return the installed version; without an installation that of the source tree, marked `+source`."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(DISTRIBUTION)
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, ValueError):
        return "unknown"
    return f"{project['version']}+source" if project.get("name") == DISTRIBUTION else "unknown"
