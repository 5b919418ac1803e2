"""Errors of the training stage."""

import difflib
from collections.abc import Iterable

from cache.errors import EmiError


class LabelError(EmiError, ValueError):
    """A label or prediction CSV is malformed, or does not fit the cache."""


class TrainSettingsError(EmiError, ValueError):
    """A setting is unknown, out of range, or does not go with another."""


class RunFolderError(EmiError, FileExistsError):
    """A run folder holds something else than this run, or is incomplete."""


class DivergedError(EmiError, ArithmeticError):
    """The loss is no longer a finite number."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return `unknown head 'lstmm'; did you mean 'lstm'? (known: lstm, mean)`, the text of an error."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{question} (known: {', '.join(names)})"
