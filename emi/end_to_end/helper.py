"""A process that shares another's training: `python -m emi.end_to_end.helper DESCRIPTOR`, started by `helpers`."""

import contextlib
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # which it has

from cache.errors import EmiError
from emi.end_to_end.helpers import group


def main() -> None:
    """Do the work that comes in by the pipe, and say what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first one's to answer
    pipe = Connection(int(sys.argv[1]))
    rank, count, port, device, work = pipe.recv()
    pipe.send(None)
    threading.Thread(target=_end_with_the_first, args=(pipe,), daemon=True).start()
    store = TCPStore("127.0.0.1", port, is_master=False)
    with group(rank, count, store, device, torch.get_num_threads()):
        try:
            work()
        except Exception as error:
            with contextlib.suppress(OSError):
                pipe.send(str(error) if isinstance(error, EmiError) else f"{type(error).__name__}: {error}")
            os._exit(1)  # leaving the group would wait for those who wait in it


def _end_with_the_first(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


if __name__ == "__main__":
    main()
