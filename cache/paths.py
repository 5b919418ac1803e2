"""Paths as people write them: `~` is the home folder, and a name may hold bytes that are not UTF-8."""

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from cache.errors import NoHomeError

StrPath = str | os.PathLike[str]
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_HOME = re.compile(r"(?P<name>[A-Za-z_][\w.]*=)?~(?P<rest>/.*)?", re.DOTALL)
"""`~`, `~/…` and `NAME=~/…`; `~name` is a file of that name, which the shell has had its turn at."""
NOT_PATHS = frozenset({"columns", "group_by", "targets", "rater"})
"""Arguments in which `~` is a character: regular expressions and names of columns."""


def at_home(value: T) -> T:
    """Put the home folder in the place of a leading `~`, in a string, a `Path`, or a list, tuple or mapping of them.

    Anything else, `~x.flac` and URLs too, is returned as it is.

    Raises:
        NoHomeError: this user has no home folder.
    """
    return cast(T, _at_home(value))


def _at_home(value: Any) -> Any:
    if isinstance(value, str):
        return _expanded(value)
    if isinstance(value, Path):
        return type(value)(_expanded(str(value))) if str(value).startswith("~") else value
    if isinstance(value, Mapping):
        return {key: _at_home(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_at_home, value))
    return value


def takes_paths(function: Callable[P, R]) -> Callable[P, R]:
    """Let every argument of a function start with `~`: what commands and the Python API are wrapped in."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(zip(names, args, strict=False)) if len(args) <= len(names) else {}
        positional = [value if name in NOT_PATHS else at_home(value) for name, value in given.items()]
        keywords = {name: value if name in NOT_PATHS else at_home(value) for name, value in kwargs.items()}
        return function(*(positional if given else args), **keywords)  # type: ignore[arg-type]

    return wrapped


def readable(name: str) -> str:
    r"""A file name that can be printed and stored: bytes that are not UTF-8 are written as `\xe0`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Return whether a name can be stored as UTF-8: bytes of a file name that are not are surrogates in Python."""
    return name.encode(errors="replace").decode() == name


def _expanded(text: str) -> str:
    match = _HOME.fullmatch(text)
    if match is None:
        return text
    home = os.path.expanduser("~")
    if home == "~":
        raise NoHomeError(f"{text}: this user has no home folder (HOME is not set); write the path in full")
    return (match["name"] or "") + home.rstrip("/") + (match["rest"] or "") or "/"
