"""Find out early whether another module hides one of emi's: `cache` and `extract` are names that anyone may use."""

import importlib.util
import os
import sys
from itertools import pairwise
from pathlib import Path

NEIGHBOURS = ("cache", "extract", "train_head")
"""The packages that emi imports and that lie beside it."""
_ROOT = Path(__file__).parents[1]


def check_neighbours() -> None:
    """Make sure that the packages beside this one are those that will be imported.

    A folder of data of such a name is no module, but hides a package of an editable installation; so emi's place then
    goes to the front of `sys.path`.

    Raises:
        ImportError: another module is in the way; names both places.
        SystemExit: the same as one sentence, where this is the command line.
    """
    for name in NEIGHBOURS:
        theirs = _hidden_by(name)
        if theirs is None:
            continue
        sentence = (
            f"emi needs its own module {name!r} ({_ROOT / name}), and Python finds another one of that name "
            f"({theirs}); rename that one, or start Python where it is not found"
        )
        if _is_command_line():
            print(f"emi: {sentence}", file=sys.stderr)
            sys.exit(2)
        raise ImportError(sentence, name=name)


def _hidden_by(name: str) -> str | None:
    """The place of a module that is found instead of emi's."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that someone put together
        return str(getattr(sys.modules[name], "__file__", "made by a program, without a file"))
    if spec is not None and spec.origin is None and name not in sys.modules:  # a folder without __init__.py
        sys.path.insert(0, str(_ROOT))
        spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    place = spec.origin or next(iter(spec.submodule_search_locations or ()), "without a file")
    found = Path(place)  # whose folders installers may have linked
    ours = found.stem == "__init__" and os.path.realpath(found.parent) == os.path.realpath(_ROOT / name)
    return None if ours else place


def _is_command_line() -> bool:
    """Whether this is `emi …` or `python -m emi …`, whose first argument is "-m" while it is looked for."""
    first = next(iter(sys.argv), "")
    module = next((value for flag, value in pairwise(sys.orig_argv) if flag == "-m"), "")
    return Path(first).stem == "emi" or (first == "-m" and module.partition(".")[0] == "emi")
