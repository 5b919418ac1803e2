"""Share an extraction between processes of one machine: one per GPU, each writing segments of its own.

Each process takes every n-th window of batches, so that the features are those of a single process, byte for byte. One
that dies is started again once with what is left of its share; the others never wait for it.
"""

import contextlib
import multiprocessing.connection
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, cast

from cache.system.child_process import how_it_ended, parent_connection, start_child
from extract.errors import ExtractProcessError
from extract.failures import Failure, Note
from extract.settings import ExtractSettings
from extract.stats import PipelineStats

if TYPE_CHECKING:
    from extract.run import ExtractPlan

OnResult = Callable[[str, float, Failure | Note | None], None]
"""Called with a clip's id and seconds, and its failure if it is one, or what should be known of its file."""
ATTEMPTS = 2
INTERRUPTED = 130


@dataclass
class _Worker:
    """A process and what it last said."""

    number: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    stats: PipelineStats = field(default_factory=PipelineStats)
    last_clip: str = ""
    finished: bool = False
    error: BaseException | None = None

    def take(self, on_result: OnResult) -> bool:
        """Take in one message; returns whether there may be more."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.wait()
            return False
        if isinstance(message, BaseException):
            self.error = message
        elif message is None:
            self.finished = True
        else:
            self.stats, result = message
            self.last_clip = result[0]
            on_result(*result)
        return True

    def died(self) -> str:
        """How it ended without a last word, and after which clip."""
        after = f" after clip {self.last_clip!r}" if self.last_clip else " before its first clip"
        return f"process {self.number + 1} {how_it_ended(self.process.returncode)}{after}"


def run_processes(
    plan: "ExtractPlan",
    settings: ExtractSettings,
    cache: str,
    count: int,
    stats: PipelineStats,
    on_result: OnResult,
) -> list[str]:
    """Fill the cache of a plan with `count` processes.

    Args:
        plan: what is to be done; the cache exists.
        settings: how.
        cache: its path.
        count: of processes.
        stats: what they waited for is added, as they go on.
        on_result: called for every clip that a process has finished.

    Returns:
        A sentence for each process that died and was started again.

    Raises:
        ExtractProcessError: a process died twice.
        Exception: what a process raised, once the others are done.
    """
    shares = {number: plan.share(number, count) for number in range(count)}
    shares = {number: share for number, share in shares.items() if share.todo}
    notes: list[str] = []
    handled: set[str] = set()

    def note_result(id: str, seconds: float, told: Failure | Note | None) -> None:
        if id not in handled:  # a failure of the first attempt is tried again
            handled.add(id)
            on_result(id, seconds, told)

    for _ in range(ATTEMPTS):
        workers = _run_all(shares, settings, cache, count, stats, note_result)
        for worker in workers:
            if worker.finished:
                del shares[worker.number]
            elif worker.error is None:
                notes.append(worker.died())
        errors = [worker.error for worker in workers if worker.error is not None]
        if errors:
            raise errors[0]
        if not shares:
            return [f"{note}; what it left was done by another" for note in notes]
    raise ExtractProcessError(
        f"{'; '.join(notes)}: what was left is missing in {cache}. The same command goes on from there; with "
        "--processes 1 it says more"
    )


def _run_all(
    shares: "Mapping[int, ExtractPlan]",
    settings: ExtractSettings,
    cache: str,
    count: int,
    stats: PipelineStats,
    on_result: OnResult,
) -> list[_Worker]:
    """Run one process per share to its end, whatever that is."""
    workers: list[_Worker] = []
    before = replace(stats)
    try:
        for number, share in shares.items():
            process, connection = start_child("extract.workers.processes", _gpu(number))
            workers.append(_Worker(number, process, connection))
            with contextlib.suppress(ConnectionError):  # it died: its end is found below
                connection.send((share, replace(settings, processes=1), cache, number, count))
        open_ends = {worker.connection: worker for worker in workers}
        while open_ends:
            for ready in multiprocessing.connection.wait(list(open_ends)):
                connection = cast(Connection, ready)
                if not open_ends[connection].take(on_result):
                    del open_ends[connection]
            stats.become_sum_of([before, *(worker.stats for worker in workers)])
    finally:
        for worker in workers:
            worker.process.terminate()  # it commits what it has, as after Ctrl-C
        for worker in workers:
            worker.process.wait()
            worker.connection.close()
    return workers


def _gpu(number: int) -> Mapping[str, str]:
    """The variable that leaves a process one GPU, in turn; set before its torch can look."""
    import torch

    if not torch.cuda.is_available():
        return {}
    there = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    visible = there.split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[number % len(visible)]}


def main() -> None:
    """What each process does: take a part of the cores, and fill its share."""
    signal.signal(signal.SIGTERM, _interrupt)
    parent = parent_connection()
    try:
        share, settings, cache, number, count = parent.recv()
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores[number % len(cores) :: count])
        from extract.fill import fill

        stats = PipelineStats()
        fill(share, settings, cache, stats, lambda *result: parent.send((stats, result)))
        parent.send(None)
    except (KeyboardInterrupt, EOFError, ConnectionError):  # or the parent is gone
        os._exit(INTERRUPTED)
    except Exception as error:  # raised again by the parent
        parent.send(error)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
