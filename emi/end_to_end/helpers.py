"""More processes of one training on this machine, started by the first: the setting `processes`.

torchrun starts processes too. Here the first one is the caller's own, so that what it returns, prints and raises stays
what it was with one process, and the others end with it, however it ends.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # which it has

from cache.errors import EmiError
from emi.end_to_end.processes import PATIENCE
from extract.child import how_it_ended, start_child
from train_head.errors import TrainSettingsError

Work = Callable[[], object]
SECONDS_TO_FINISH, SECONDS_TO_DIE = 60.0, 5.0
"""For a process that has nothing left to do, and for one whose connection has broken off."""


class HelperError(EmiError, RuntimeError):
    """A process that shared the training ended early."""


@contextlib.contextmanager
def helpers(count: int, device: str, work: Work) -> Iterator[None]:
    """Let other processes do the same work while the block lasts; the caller does its own in the block.

    Args:
        count: processes, this one counted in; with 1 nothing changes.
        device: "cpu", of whose cores each gets an equal share, or "cuda", of which each gets a device.
        work: what the others call; picklable.

    Raises:
        TrainSettingsError: torchrun has started processes already, or there are fewer devices.
        HelperError: one of the others ended early.
    """
    if count == 1:
        yield
        return
    _check(count, device)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = max(1, torch.get_num_threads() // count)
    others = [_Helper(rank, threads) for rank in range(1, count)]
    try:
        for other in others:
            other.begin(count, store.port, device, work)
        with group(0, count, store, device, threads):
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


def _end(others: "Sequence[_Helper]", error: BaseException) -> None:
    """Stop the others, who would wait for this process, and it for them where it leaves the group.

    Raises:
        HelperError: the error is none of this process's own, such as gloo's, but follows from another's end.
    """
    own = isinstance(error, EmiError) or not isinstance(error, Exception)
    ends = [] if own else [end for end in (other.early_end() for other in others) if end]
    for other in others:
        other.stop()
    if ends:
        raise HelperError(ends[0]) from error


class _Helper:
    """One of the others, as the first sees it."""

    def __init__(self, rank: int, threads: int) -> None:
        self._rank = rank
        self._process, self._pipe = start_child("emi.end_to_end.helper", {"OMP_NUM_THREADS": str(threads)})

    def begin(self, count: int, port: int, device: str, work: Work) -> None:
        """Hand over the work, and wait until it is understood.

        Raises:
            HelperError: the process is gone.
        """
        try:
            self._pipe.send((self._rank, count, port, device, work))
            self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise HelperError(self.early_end()) from error

    def wait(self, seconds: float) -> None:
        """Until it has ended, but no longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def early_end(self) -> str:
        """How it ended by itself, and what to do; nothing if it has not."""
        self.wait(SECONDS_TO_DIE)
        if not self._process.returncode:
            return ""
        name = f"process {self._rank + 1}"
        with contextlib.suppress(EOFError, ConnectionError):
            if self._pipe.poll():
                return f"{name}: {self._pipe.recv()}"
        return (
            f"{name} {how_it_ended(self._process.returncode)}; run the command again, which goes on from what was "
            "saved. Where memory ran out, give fewer --processes, --checkpointing or a lower --batch-seconds"
        )

    def stop(self) -> None:
        """At once, where it has not ended."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()


@contextlib.contextmanager
def group(rank: int, count: int, store: TCPStore, device: str, threads: int) -> Iterator[None]:
    """Be one of so many, as `Processes` finds it, and leave this process as it was.

    Args:
        rank: number of this process.
        count: of processes.
        store: by which they find one another.
        device: "cpu" or "cuda".
        threads: of this process, on a CPU.
    """
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    numbers |= {"OMP_NUM_THREADS": threads, "MASTER_PORT": 0}  # accelerate wants to see them
    environment = {name: os.environ.get(name) for name in numbers}
    before = torch.get_num_threads()
    os.environ.update({name: str(number) for name, number in numbers.items()})
    PartialState._reset_state()
    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(threads)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
        PartialState._reset_state()
        torch.set_num_threads(before)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check(count: int, device: str) -> None:
    there = int(os.environ.get("WORLD_SIZE", "1"))
    if there > 1 or dist.is_initialized():
        raise TrainSettingsError(
            f"--processes {count} starts them on this machine, and torchrun or accelerate has started {there} already; "
            "leave out one of the two"
        )
    if device == "cuda" and torch.cuda.device_count() < count:
        raise TrainSettingsError(
            f"--processes {count} needs as many GPUs, and torch sees {torch.cuda.device_count()}; give that many, or "
            "--device cpu"
        )
