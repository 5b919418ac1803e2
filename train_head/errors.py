"""Errors of the training stage."""

import difflib
from collections.abc import Collection, Iterable

from cache.errors import EmiError


class LabelError(EmiError, ValueError):
    """A label or prediction CSV is malformed, or does not fit the cache."""


class TrainSettingsError(EmiError, ValueError):
    """A setting is unknown, out of range, or does not go with another."""


class RunFolderError(EmiError, FileExistsError):
    """A run folder holds something else than this run, or is incomplete."""


class DivergedError(EmiError, ArithmeticError):
    """The loss is no longer a finite number."""


def refuse(*problems: tuple[object, str], error: type[EmiError] = TrainSettingsError) -> None:
    """Raise an error for the first problem that is there.

    Args:
        problems: whether it is there, and the sentence that says so.
        error: is raised.
    """
    for there, sentence in problems:
        if there:
            raise error(sentence)


def check_known(what: str, names: Iterable[object], known: Collection[object], where: str = "") -> None:
    """Refuse names that are not known.

    Args:
        what: kind of thing that the names stand for.
        names: as a user gave them.
        known: the names that there are.
        where: precedes the message.

    Raises:
        TrainSettingsError: a name is unknown; suggests the nearest.
    """
    for name in names:
        if name not in known:
            raise TrainSettingsError(where + unknown(what, name, known))


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """Return `unknown head 'lstmm'; did you mean 'lstm'? (known: lstm, mean)`, the text of an error."""
    names = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), names, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{question} (known: {', '.join(names)})"
