"""Start more processes of one training on this machine: the setting `processes`.

torchrun starts processes too. Here the first process is the caller: it returns, prints and raises the same as with one
process, and the others end when it ends. Each of the others is `python -m emi.finetuning.local_processes DESCRIPTOR`.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import patch_environment
from threadpoolctl import threadpool_limits

from cache.errors import EmiError
from cache.system.child_process import how_it_ended, parent_connection, start_child
from cache.system.machine import KILLED
from emi.finetuning.processes import PATIENCE
from extract.private import without_accelerate_state
from train_head.errors import refuse

Work = Callable[[], object]
LOST = 3
"""Exit code of a process that ends because another has ended."""
SECONDS_TO_FINISH, SECONDS_TO_DIE = 60.0, 5.0
"""Time for a process that has nothing left to do, and for one whose connection is broken."""


class LocalProcessError(EmiError, RuntimeError):
    """A process that shared the training ended early."""


@contextlib.contextmanager
def local_processes(count: int, device: str, work: Work) -> Iterator[None]:
    """Let other processes do the same work for the length of the block, in which the caller does its own.

    Args:
        count: number of processes, including this one; with 1 nothing changes.
        device: "cpu", where each process gets an equal share of the threads, or "cuda", where each gets a device.
        work: what the others call; picklable.

    Raises:
        TrainSettingsError: see `check_processes`.
        LocalProcessError: one of the others ended early.
    """
    check_processes(count, device)
    if count == 1:
        yield
        return
    threads = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory(prefix="emi-finetune-") as folder, contextlib.ExitStack() as started:
        environment = {"OMP_NUM_THREADS": str(threads), "TMPDIR": folder}
        others = [started.enter_context(contextlib.closing(_Worker(rank, environment))) for rank in range(1, count)]
        for other in others:
            other.begin((count, device, threads, folder), work)
        with _group(0, count, device, threads, folder):
            try:
                yield
            except BaseException as error:
                until = time.monotonic() + SECONDS_TO_DIE
                ends = [other.early_end(until) for other in others if _is_lost(error)]
                for other in others:  # they would wait for this process, and leaving the group would wait for them
                    other.close()
                if any(ends):
                    raise LocalProcessError(next(filter(None, ends))) from error
                raise
        for other in others:
            other.wait(SECONDS_TO_FINISH)


def check_processes(count: int, device: str) -> None:
    """Refuse a number of processes that cannot be started here.

    Raises:
        TrainSettingsError: torchrun has started processes already, or there are fewer devices.
    """
    if count == 1:
        return
    gpus = torch.cuda.device_count() if device == "cuda" else count
    refuse(
        (
            dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1,
            f"processes {count} are to be started on this machine, and torchrun or accelerate has started some already "
            "(WORLD_SIZE says so); leave out one of the two",
        ),
        (
            gpus < count,
            f"processes {count} need as many GPUs, and torch sees {gpus}; ask for that many, or for device cpu",
        ),
    )


def _is_lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class _Worker:
    """Another process, as the first one sees it."""

    def __init__(self, rank: int, environment: Mapping[str, str]) -> None:
        self._rank = rank
        self._process, self._pipe = start_child("emi.finetuning.local_processes", environment, hears_interrupts=False)

    def begin(self, place: tuple[int, str, int, str], work: Work) -> None:
        """Hand over the work, and wait until it is received.

        Raises:
            LocalProcessError: the process is gone.
        """
        try:
            self._pipe.send((self._rank, *place, work))
            self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise LocalProcessError(
                self.early_end(time.monotonic() + SECONDS_TO_DIE)
                or f"process {self._rank + 1} does not answer; run the command again"
            ) from error

    def wait(self, seconds: float) -> None:
        """Wait for the process to exit, up to a timeout."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def early_end(self, until: float) -> str:
        """Return how the process failed before a time of the monotonic clock, and what to do; empty if it did not."""
        self.wait(max(0.0, until - time.monotonic()))
        code = self._process.returncode
        if not code or code == LOST:
            return ""
        name = f"process {self._rank + 1}"
        with contextlib.suppress(EOFError, ConnectionError):
            if self._pipe.poll():
                return f"{name}: {self._pipe.recv()}"
        if code == KILLED:
            return (
                f"{name} {how_it_ended(code)}, which is what the kernel does where memory runs out; the same command "
                "resumes from the last saved state: give fewer --processes, --checkpointing or a lower --batch-seconds"
            )
        return f"{name} {how_it_ended(code)}; with --processes 1 the command says more"

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()


@contextlib.contextmanager
def _group(rank: int, count: int, device: str, threads: int, folder: str) -> Iterator[None]:
    """Join a group of processes, as `Processes` finds it, and leave this process as it was.

    Args:
        rank: number of this process.
        count: number of processes.
        device: "cpu" or "cuda".
        threads: of this process, on a CPU.
        folder: in which the processes find each other.
    """
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    variables |= {"OMP_NUM_THREADS": threads, "MASTER_PORT": 0}  # accelerate requires them
    # gloo stays within the machine, whatever address the machine's name has
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in (name for _, name in socket.if_nameindex()) else {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch_environment(**variables, **loopback))
        stack.callback(setattr, sys, "excepthook", sys.excepthook)  # the group puts its number before every line
        stack.enter_context(without_accelerate_state())
        if device == "cuda":
            stack.callback(torch.cuda.set_device, torch.cuda.current_device())
            torch.cuda.set_device(rank)
        else:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
            stack.enter_context(threadpool_limits(threads, user_api="blas"))
        store = dist.FileStore(str(Path(folder) / "store"), count)  # type: ignore[attr-defined]  # which it has
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE
        )
        stack.callback(dist.destroy_process_group)
        yield


def main() -> None:
    """Do the work that comes through the pipe, and report errors."""
    pipe = parent_connection()
    try:
        rank, *place, work = pipe.recv()
        pipe.send(None)
    except EOFError:
        sys.exit(LOST)
    threading.Thread(target=_end_with_the_first, args=(pipe,), daemon=True).start()
    with _group(rank, *place):
        try:
            work()
        except Exception as error:  # the process ends at once: leaving the group would wait for those that wait in it
            if _is_lost(error):
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
