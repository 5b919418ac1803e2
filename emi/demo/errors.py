"""What can go wrong while the demo data are made, each error also being the builtin it resembles."""

from __future__ import annotations

from cache.errors import EmiError


class DemoDependencyError(EmiError, ImportError):
    """A package that only the demo data need is not installed.

    Args:
        package: its name on the package index.
    """

    def __init__(self, package: str) -> None:
        super().__init__(
            f"making demo data needs the package {package!r}; install it with: pip install 'emi-mimicry[demo]'"
        )


class DemoSettingsError(EmiError, ValueError):
    """A setting of the demo data is out of its range."""


class DemoFolderError(EmiError, FileExistsError):
    """The target folder holds something that must not be overwritten."""


class SpeechError(EmiError, RuntimeError):
    """espeak-ng did not speak."""
