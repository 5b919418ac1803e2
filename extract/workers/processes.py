"""Share an extraction between processes of one machine: one per GPU, each writing its own segments of the cache.

Process k of n takes windows k, k + n, k + 2n, …, so that the features are those of a single process, byte for byte. A
process that dies is started once more with the rest of its share; the others do not wait for it.
"""

import contextlib
import multiprocessing.connection
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import cast

from cache.system.child_process import how_it_ended, parent_connection, start_child
from extract.errors import ExtractProcessError
from extract.failures import Failure, Note, OnResult
from extract.plan import ExtractPlan
from extract.settings import ExtractSettings
from extract.stats import PipelineStats

ATTEMPTS = 2
INTERRUPTED = 130


@dataclass
class _Worker:
    """A process and what it has reported; `outcome` is "finished", an error, or None if it died."""

    number: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    stats: PipelineStats = field(default_factory=PipelineStats)
    last_clip: str = ""
    outcome: BaseException | str | None = None


def run_processes(
    plan: ExtractPlan, settings: ExtractSettings, cache: str, stats: PipelineStats, on_result: OnResult, count: int
) -> list[str]:
    """Fill the cache of a plan with several processes.

    Args:
        plan: what is to be done; the cache exists.
        settings: of the extraction.
        cache: its path.
        stats: the processes' times are added during the run.
        on_result: called for every clip that a process has finished.
        count: number of processes.

    Returns:
        A sentence for each process that died and was started again.

    Raises:
        ExtractProcessError: a process died twice.
        Exception: raised by a process; the others finish first.
    """
    shares = {number: share for number in range(count) if (share := plan.share(number, count)).todo}
    notes: list[str] = []
    reported: set[str] = set()

    def report_once(id: str, seconds: float, remark: Failure | Note | None) -> None:
        if id not in reported:  # a clip that failed is tried again in the second attempt
            reported.add(id)
            on_result(id, seconds, remark)

    for _ in range(ATTEMPTS):
        workers = _run_all(shares, settings, cache, count, stats, report_once)
        for worker in workers:
            if worker.outcome == "finished":
                del shares[worker.number]
            elif worker.outcome is None:
                after = f"after clip {worker.last_clip!r}" if worker.last_clip else "before its first clip"
                notes.append(f"process {worker.number + 1} {how_it_ended(worker.process.returncode)} {after}")
        if error := next((w.outcome for w in workers if isinstance(w.outcome, BaseException)), None):
            raise error
        if not shares:
            return [f"{note}; another process did the rest of its share" for note in notes]
    raise ExtractProcessError(
        f"{'; '.join(notes)}: the clips that it had left are missing in {cache}. The same command resumes there; "
        "--processes 1 shows more of the error"
    )


def _run_all(
    shares: Mapping[int, ExtractPlan],
    settings: ExtractSettings,
    cache: str,
    count: int,
    stats: PipelineStats,
    on_result: OnResult,
) -> list[_Worker]:
    """Run one process per share until all have ended, whether they finished or died."""
    workers: list[_Worker] = []
    before = replace(stats)
    try:
        for number, share in shares.items():
            process, connection = start_child("extract.workers.processes", _gpu(number))
            workers.append(_Worker(number, process, connection))
            with contextlib.suppress(ConnectionError):  # it died: the loop below notices
                connection.send((share, replace(settings, processes=1), cache, number, count))
        running = {worker.connection: worker for worker in workers}
        while running:
            for ready in multiprocessing.connection.wait(list(running)):
                worker = running[cast(Connection, ready)]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionError):
                    worker.process.wait()
                    del running[worker.connection]
                    continue
                if isinstance(message, tuple):
                    worker.stats, result = message
                    worker.last_clip = result[0]
                    on_result(*result)
                else:
                    worker.outcome = message
            stats.become_sum_of([before, *(worker.stats for worker in workers)])
    finally:
        for worker in workers:
            worker.process.terminate()  # it commits what it has, as after Ctrl-C
        for worker in workers:
            worker.process.wait()
            worker.connection.close()
    return workers


def _gpu(number: int) -> Mapping[str, str]:
    """Return the environment variable that shows a process one GPU only; it must be set before torch starts."""
    import torch

    if not torch.cuda.is_available():
        return {}
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    visible = devices.split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[number % len(visible)]}


def main() -> None:
    """Run in each process: take a part of the cores, and fill a share of the windows."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    parent = parent_connection()
    try:
        share, settings, cache, number, count = parent.recv()
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores[number % len(cores) :: count])
        from extract.clips import fill  # now, because torch counts the cores on import

        stats = PipelineStats()
        fill(share, settings, cache, stats, lambda *result: parent.send((stats, result)))
        parent.send("finished")
    except (KeyboardInterrupt, EOFError, ConnectionError):  # or the parent is gone
        os._exit(INTERRUPTED)
    except Exception as error:  # raised again by the parent
        parent.send(error)


if __name__ == "__main__":
    main()
