"""Start a Python module as a child process, connected by a pipe.

Not `multiprocessing.Process`: under spawn that runs the caller's script again in every child, and a script or notebook
without an `if __name__ == "__main__"` guard would start extractions in a circle.
"""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection


def start_child(module: str) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Run `python -m module DESCRIPTOR`; the child takes its end with `Connection(int(sys.argv[1]))`.

    Returns:
        The process and the parent's end. A child whose parent is gone reads EOFError from its own.
    """
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
    return process, ours


def how_it_ended(code: int | None) -> str:
    """An exit code as the end of a sentence about a process."""
    if code is not None and code < 0:
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"
