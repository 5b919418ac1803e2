"""Start more processes of one training on this machine: the setting `processes`.

torchrun starts processes too. Here the first one is the caller: what it returns, prints and raises is the same as with
one process, and the others end with it, however it ends.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from cache.errors import EmiError
from cache.system.child_process import how_it_ended, start_child
from cache.system.machine import KILLED
from emi.finetuning.processes import PATIENCE
from extract.private import without_accelerate_state
from train_head.errors import TrainSettingsError

Work = Callable[[], object]
LOST = 3
"""Exit code of a process that another has left alone, which is not the cause of anything."""
SECONDS_TO_FINISH, SECONDS_TO_DIE = 60.0, 5.0
"""For a process that has nothing left to do, and for one whose connection has broken off."""


class LocalProcessError(EmiError, RuntimeError):
    """A process that shared the training ended early."""


@contextlib.contextmanager
def local_processes(count: int, device: str, work: Work) -> Iterator[None]:
    """Let other processes do the same work while the block lasts; the caller does its own in the block.

    Args:
        count: processes, this one counted in; with 1 nothing changes.
        device: "cpu", of whose threads each gets an equal share, or "cuda", of which each gets a device.
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
    others: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="emi-finetune-") as folder:
        try:
            for rank in range(1, count):
                others.append(_Worker(rank, {"OMP_NUM_THREADS": str(threads), "TMPDIR": folder}))
            for other in others:
                other.begin((count, device, threads, folder), work)
            with group(0, count, device, threads, folder):
                try:
                    yield
                except BaseException as error:
                    _end(others, error)
                    raise
            for other in others:
                other.wait(SECONDS_TO_FINISH)
        finally:
            for other in others:
                other.stop()


def check_processes(count: int, device: str) -> None:
    """Refuse what cannot be started here.

    Raises:
        TrainSettingsError: torchrun has started processes already, or there are fewer devices.
    """
    if count == 1:
        return
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainSettingsError(
            f"processes {count} are to be started on this machine, and torchrun or accelerate has started some already "
            "(WORLD_SIZE says so); leave out one of the two"
        )
    if device == "cuda" and torch.cuda.device_count() < count:
        raise TrainSettingsError(
            f"processes {count} need as many GPUs, and torch sees {torch.cuda.device_count()}; ask for that many, or "
            "for device cpu"
        )


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone: gloo's have no class of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _end(others: "Sequence[_Worker]", error: BaseException) -> None:
    """Stop the others, who would wait for this process, and it for them where it leaves the group.

    Raises:
        LocalProcessError: the error follows from another's end.
    """
    until = time.monotonic() + SECONDS_TO_DIE
    ends = [how for how in (other.early_end(until) for other in others) if how] if is_lost(error) else []
    for other in others:
        other.stop()
    if ends:
        raise LocalProcessError(ends[0]) from error


class _Worker:
    """One of the others, as the first sees it."""

    def __init__(self, rank: int, environment: Mapping[str, str]) -> None:
        self._rank = rank
        self._process, self._pipe = start_child("emi.finetuning.local_worker", environment, hears_interrupts=False)

    def begin(self, place: tuple[int, str, int, str], work: Work) -> None:
        """Hand over the work, and wait until it is understood.

        Raises:
            LocalProcessError: the process is gone.
        """
        try:
            self._pipe.send((self._rank, *place, work))
            self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            how = self.early_end(time.monotonic() + SECONDS_TO_DIE)
            raise LocalProcessError(
                how or f"process {self._rank + 1} does not answer; run the command again"
            ) from error

    def wait(self, seconds: float) -> None:
        """Wait for the process to exit, up to a timeout."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def early_end(self, until: float) -> str:
        """How it ended by itself before a moment of the clock, and what to do; nothing if it has not, or was lost."""
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
                "goes on from what was saved: give fewer --processes, --checkpointing or a lower --batch-seconds"
            )
        return f"{name} {how_it_ended(code)}; with --processes 1 the command says more"

    def stop(self) -> None:
        """At once, where it has not ended."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()


@contextlib.contextmanager
def group(rank: int, count: int, device: str, threads: int, folder: str) -> Iterator[None]:
    """Be one of so many, as `Processes` finds it, and leave this process as it was.

    Args:
        rank: number of this process.
        count: of processes.
        device: "cpu" or "cuda".
        threads: of this process, on a CPU.
        folder: in which they find one another.
    """
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    variables |= {"OMP_NUM_THREADS": threads, "MASTER_PORT": 0}  # accelerate wants to see them
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment({name: str(value) for name, value in variables.items()} | _loopback()))
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


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _loopback() -> dict[str, str]:
    """Let gloo speak within the machine, whatever its name leads to."""
    return {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in (name for _, name in socket.if_nameindex()) else {}
