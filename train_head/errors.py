"""Errors of the training stage."""

from cache.errors import EmiError


class LabelError(EmiError, ValueError):
    """A label or prediction CSV is malformed, or does not fit the cache."""


class TrainSettingsError(EmiError, ValueError):
    """A setting is unknown, out of range, or does not go with another."""


class RunFolderError(EmiError, FileExistsError):
    """A run folder holds something else than this run, or is incomplete."""


class DivergedError(EmiError, ArithmeticError):
    """The loss is no longer a finite number."""
