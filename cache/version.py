"""The version of emi, whose distribution is named `emi-mimicry`: `emi` on PyPI is another project."""

import tomllib
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "emi-mimicry"


def version() -> str:
    """Return the installed version; without an installation that of the source tree, marked `+source`."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return _version_of_source()


def _version_of_source() -> str:
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, ValueError):
        return "unknown"
    return f"{project['version']}+source" if project.get("name") == DISTRIBUTION else "unknown"
