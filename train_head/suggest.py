"""Say what was meant when a name is unknown."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """`unknown head 'lstmm'; did you mean 'lstm'? (known: lstm, mean)`."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{question} (known: {', '.join(names)})"
