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
from typing import Any


def start_child(
    module: str, environment: Mapping[str, str] | None = None, *, hears_interrupts: bool = True
) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Run `python -m module DESCRIPTOR`; the child takes its end of the pipe with `parent_connection`.

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
            stdin=subprocess.DEVNULL,
            env=os.environ | (environment or {}) | {"PYTHONPATH": os.pathsep.join(places)},
            **_inheriting(theirs.fileno(), hears_interrupts),
        )
    return process, ours


def parent_connection() -> Connection:
    """In the child: its end of the pipe to the parent."""
    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection

        return PipeConnection(int(sys.argv[1]))
    return Connection(int(sys.argv[1]))


def _inheriting(descriptor: int, hears_interrupts: bool) -> dict[str, Any]:
    """Arguments of `Popen` that hand a descriptor to the child, and decide whether Ctrl-C reaches it."""
    if sys.platform == "win32":
        os.set_handle_inheritable(descriptor, True)
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [descriptor]})
        return {
            "startupinfo": startup,
            "creationflags": 0 if hears_interrupts else subprocess.CREATE_NEW_PROCESS_GROUP,
        }
    return {"pass_fds": [descriptor], "process_group": None if hears_interrupts else 0}


def how_it_ended(code: int | None) -> str:
    """An exit code as the end of a sentence about a process."""
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
