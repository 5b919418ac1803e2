"""Start a Python module as a child process, connected by a pipe.

Not `multiprocessing.Process`: under spawn that runs the caller's script again in every child, and a script or notebook
without an `if __name__ == "__main__"` guard would start extractions in a circle.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection


def start_child(
    module: str, environment: Mapping[str, str] | None = None, *, hears_interrupts: bool = True
) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Run `python -m module DESCRIPTOR`; the child takes its end with `Connection(int(sys.argv[1]))`.

    Args:
        module: which imports what this process imports, from the same places and from no others.
        environment: variables to set beside those of this process.
        hears_interrupts: whether Ctrl-C reaches the child too, and not this process alone.

    Returns:
        The process and the parent's end. A child whose parent is gone reads EOFError from its own.
    """
    places = [path or os.getcwd() for path in sys.path if isinstance(path, str)]  # notebooks put other things there
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno())],  # -P: not from the working directory
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            process_group=None if hears_interrupts else 0,
            env=os.environ | (environment or {}) | {"PYTHONPATH": os.pathsep.join(places)},
        )
    return process, ours


def how_it_ended(code: int | None) -> str:
    """An exit code as the end of a sentence about a process."""
    if code is not None and code < 0:
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"
