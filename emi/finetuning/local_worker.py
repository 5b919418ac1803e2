"""A process that shares another's training: `python -m emi.finetuning.local_worker DESCRIPTOR` (`local_processes`)."""

import contextlib
import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from cache.errors import EmiError
from cache.system.child_process import parent_connection
from emi.finetuning.local_processes import LOST, Work, group, is_lost


def main() -> None:
    """Do the work that comes in by the pipe, and say what went wrong."""
    pipe = parent_connection()
    try:
        rank, count, device, threads, folder, work = pipe.recv()
        pipe.send(None)
        threading.Thread(target=_end_with_the_first, args=(pipe,), daemon=True).start()
        with group(rank, count, device, threads, folder):
            _do(work, pipe)
    except EOFError:
        sys.exit(LOST)


def _do(work: Work, pipe: Connection) -> None:
    """Ends the process at once on an error: to leave the group it would wait for those who wait in it."""
    try:
        work()
    except Exception as error:
        if is_lost(error):
            os._exit(LOST)
        with contextlib.suppress(OSError):
            pipe.send(str(error) if isinstance(error, EmiError) else f"{type(error).__name__}: {error}")
        if not isinstance(error, EmiError):
            traceback.print_exc()
        os._exit(1)


def _end_with_the_first(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os._exit(LOST)


if __name__ == "__main__":
    main()
