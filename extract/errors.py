"""Errors of the extraction stage."""

from cache.errors import EmiError


class MediaListError(EmiError, ValueError):
    """The list of media to extract is unusable: nothing found, two files with one id, a malformed list."""


class MediaError(EmiError, ValueError):
    """One file cannot be turned into a waveform, or into pictures; the message is its reason in `failures.csv`."""


class BackboneError(EmiError, ValueError):
    """A backbone cannot be found or loaded, or its weights do not fit."""


class ExtractSettingsError(EmiError, ValueError):
    """An option of the extraction is out of range or does not go with another."""


class ExtractProcessError(EmiError):
    """Processes that shared an extraction died; what they committed is kept."""
