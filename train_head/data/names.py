"""Names of streams, and caches by stream."""

import os
import re
from collections.abc import Mapping, Sequence

from cache.paths import StrPath, at_home
from train_head.errors import TrainSettingsError

UNNAMED = "features"
"""Name of the only stream of a run whose caches were given without a name; the table of config.toml that records it."""
Caches = StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]]
"""One cache, several that together hold the clips of one stream, or these by the name of their stream."""
_NAMED = re.compile(r"([a-z][a-z0-9_]*)=(.+)", re.DOTALL)


def by_stream(caches: Caches) -> dict[str, list[StrPath]]:
    """Return caches by the name of their stream, sorted, so that nothing depends on the order in which they are given.

    A path may carry the name: `face=f.zarr`. A path that exists as it is written is a path.

    Raises:
        TrainSettingsError: none, or none for a stream, a name that is none, or caches with and without a name.
    """
    found: dict[str, list[StrPath]] = {}
    if isinstance(caches, Mapping):
        found = {name: _listed(paths) for name, paths in caches.items()}
    else:
        for path in _listed(caches):
            named = _NAMED.fullmatch(os.fspath(path))
            if named is not None and not os.path.exists(path):
                found.setdefault(named[1], []).append(at_home(named[2]))
            else:
                _refuse_misnamed(os.fspath(path))
                found.setdefault(UNNAMED, []).append(path)
    if not found:
        raise TrainSettingsError("no cache is given; name one with --cache PATH")
    for name, paths in found.items():
        if not paths:
            raise TrainSettingsError(f"no cache is given for the stream {name!r}; give one, or leave the stream out")
    if UNNAMED in found and len(found) > 1:
        others = ", ".join(name for name in found if name != UNNAMED)
        raise TrainSettingsError(
            f"{os.fspath(found[UNNAMED][0])} has no name, and others are called {others}; with several streams each "
            "cache is given as --cache NAME=PATH"
        )
    return dict(sorted(found.items()))


def _refuse_misnamed(path: str) -> None:
    """Refuse `NAME=PATH` of which only PATH exists: the name is none of a stream."""
    name, _, place = path.partition("=")
    if place and not os.path.exists(path) and os.path.exists(at_home(place)):
        raise TrainSettingsError(
            f"{path}: {name!r} cannot name a stream: a name is made of a-z, 0-9 and _, and begins with a letter; take "
            "a word such as audio, face or text"
        )


def _listed(paths: StrPath | Sequence[StrPath]) -> list[StrPath]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)
