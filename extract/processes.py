"""Share an extraction between processes of one machine: one per GPU, each writing segments of its own.

Each process takes every n-th window of batches, so that the features are those of a single process, byte for byte. One
that dies is started again once with what is left of its share; the others never wait for it.
"""

import multiprocessing.connection
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from extract.child import how_it_ended, start_child
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    from extract.run import ExtractPlan, ExtractSummary

ATTEMPTS = 2
INTERRUPTED = 130


@dataclass
class _Worker:
    """A process, its share, and what it last said."""

    number: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    last_clip: str = ""
    summary: "ExtractSummary | None" = None
    error: BaseException | None = field(default=None)

    def take(self, on_clip: Callable[[str, float], None]) -> bool:
        """Take in one message; returns whether there may be more."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.wait()
            return False
        if isinstance(message, tuple):
            self.last_clip = message[0]
            on_clip(*message)
        elif isinstance(message, BaseException):
            self.error = message
        else:
            self.summary = message
        return True

    def died(self) -> str:
        """How it ended without a summary, and after which clip."""
        how = how_it_ended(self.process.returncode)
        after = f" after clip {self.last_clip!r}" if self.last_clip else " before its first clip"
        return f"process {self.number + 1} {how}{after}"


def run_processes(
    plan: "ExtractPlan",
    settings: ExtractSettings,
    summary: "ExtractSummary",
    count: int,
    on_clip: Callable[[str, float], None],
) -> None:
    """Fill the cache of a plan with `count` processes; what they did is added to the summary.

    Args:
        plan: what is to be done; the cache exists.
        settings: how.
        summary: added to; `notes` say which processes died.
        count: of processes.
        on_clip: called with the id and the seconds of every clip that a process has finished.

    Raises:
        Exception: what a process raised, once the others are done.
    """
    shares = {number: replace(plan, windows=plan.windows[number::count]) for number in range(count)}
    for attempt in range(ATTEMPTS):
        workers = _run_all(shares, settings, summary.cache, count, on_clip)
        for worker in workers:
            if worker.summary is not None:
                summary.add(worker.summary)
                del shares[worker.number]
            elif worker.error is None:
                again = "; starting it again" if attempt + 1 < ATTEMPTS else "; the same command does what it left"
                summary.notes.append(worker.died() + again)
        errors = [worker.error for worker in workers if worker.error is not None]
        if errors:
            raise errors[0]
        if not shares:
            return


def _run_all(
    shares: "dict[int, ExtractPlan]",
    settings: ExtractSettings,
    cache: str,
    count: int,
    on_clip: Callable[[str, float], None],
) -> Sequence[_Worker]:
    """Run one process per share to its end, whatever that is."""
    workers = []
    try:
        for number, share in shares.items():
            process, connection = start_child("extract.processes")
            workers.append(_Worker(number, process, connection))
            connection.send((share, replace(settings, processes=1), cache, number, count))
        open_ends = {worker.connection: worker for worker in workers}
        while open_ends:
            for ready in multiprocessing.connection.wait(list(open_ends)):
                assert isinstance(ready, Connection)
                if not open_ends[ready].take(on_clip):
                    del open_ends[ready]
    finally:
        for worker in workers:
            worker.process.terminate()  # it commits what it has, as after Ctrl-C
        for worker in workers:
            worker.process.wait()
            worker.connection.close()
    return workers


def main() -> None:
    """What each process does: take a GPU, or a part of the cores, and fill its share."""
    signal.signal(signal.SIGTERM, _interrupt)
    parent = Connection(int(sys.argv[1]))
    try:
        share, settings, cache, number, count = parent.recv()
        _take_device(number, count)
        from extract.run import ExtractSummary, fill

        summary = ExtractSummary(cache=cache)
        fill(share, settings, summary, lambda id, seconds: parent.send((id, seconds)))
        parent.send(summary)
    except (KeyboardInterrupt, EOFError, ConnectionError):  # or the parent is gone
        os._exit(INTERRUPTED)
    except Exception as error:  # raised again by the parent
        parent.send(error)


def _take_device(number: int, count: int) -> None:
    """Before torch is imported: one GPU per process in turn, and cores without another process's threads on them."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])
    import torch  # counts the GPUs without starting CUDA

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    if visible != [""]:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
