"""Run parts one after the other, each in a process of its own, and write down what they tell.

A part that crashes, hangs, runs out of memory or breaks its CUDA context costs that part: its process group is killed
at its time limit, and what it has told until then stays.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Tell = Callable[[Row], None]
"""Takes a row: "name", figures, and "passed" where it is a check."""
LEAST_SECONDS = 5.0
"""With less time left, no part is started."""
PRELOAD = (
    "torchaudio",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "emi.finetuning.start",
    "extract.clips",
    "train_head.runs.train",
)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every part is told.

    Attributes:
        device: "cpu" or "cuda".
        quick: tiny models and few clips: does it run at all?
        folder: an empty one for files; those in "shared" below it are every part's.
        start: how processes are started: "fork", from one that has imported the libraries, or "spawn".
        until: the part's end on the clock of `time.monotonic`.
    """

    device: str
    quick: bool
    folder: Path
    start: str
    until: float = 0.0

    @property
    def seconds_left(self) -> float:
        """Until the part is ended."""
        return max(0.0, self.until - time.monotonic())

    @property
    def precision(self) -> str:
        """Of what is measured: bfloat16 on a GPU; float32 on a CPU, which may have no unit for anything else."""
        return "bf16" if self.device == "cuda" else "fp32"

    def child(self, function: Callable[..., Any], *arguments: Any) -> BaseProcess:
        """A process of the part's own, not started yet.

        A part that asks for some computes nothing itself: CUDA and torch's threads do not survive a fork.
        """
        context: Any = multiprocessing.get_context(self.start)
        process: BaseProcess = context.Process(target=function, args=arguments)
        return process

    def in_child(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function in a process of the part's own, to its end.

        Raises:
            RuntimeError: it failed, or the time is over.
        """
        process = self.child(function, *arguments)
        process.start()
        process.join(self.seconds_left)
        if process.exitcode != 0:
            raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")


@dataclass(frozen=True)
class In:
    """`measure` of a module of this folder, imported in the part's process: what it lacks costs that part alone."""

    module: str

    def __call__(self, setup: Setup, tell: Tell) -> None:
        """Measure."""
        importlib.import_module(f"benchmarks.gpu_parts.{self.module}").measure(setup, tell)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part.

    Attributes:
        name: as in the report.
        measure: what it does.
        seconds: its time limit.
    """

    name: str
    measure: Callable[[Setup, Tell], None]
    seconds: float


def run_parts(parts: Sequence[Part], setup: Setup, seconds: float, write: Callable[[list[Row]], None]) -> list[Row]:
    """Run parts within a time limit for all of them together.

    Args:
        parts: in order.
        setup: for all; each gets an empty folder of its own.
        seconds: for all.
        write: called with the records so far whenever there is something new.

    Returns:
        A record per part: "name", "status" (passed, failed, timed out, not started), "seconds", "cpu_seconds", "rows",
        and "error" if something went wrong.
    """
    context, setup = _context(setup)
    until = time.monotonic() + seconds
    records: list[Row] = []
    for part in parts:
        record: Row = {"name": part.name, "status": "running", "seconds": 0.0, "rows": []}
        records.append(record)
        share = min(part.seconds, until - time.monotonic())
        if share < LEAST_SECONDS:
            record |= {"status": "not started", "error": "the parts before it left no time"}
        else:
            print(f"{part.name} (up to {share:.0f} s) …", file=sys.stderr, flush=True)
            own = replace(setup, folder=setup.folder / part.name.replace(" ", "-"), until=time.monotonic() + share)
            own.folder.mkdir()
            _run(context, part, own, record, lambda: write(records))
            print(f"  {record['status']} after {record['seconds']:.0f} s", file=sys.stderr, flush=True)
        write(records)
    return records


def _context(setup: Setup) -> tuple[Any, Setup]:
    """How processes are started: anew where a forked one cannot use the device, which a library has looked for."""
    if setup.start == "fork":
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", *PRELOAD])  # the script first: it says where modules are found
        first = context.Process(target=_touch, args=(setup.device,))  # and no part waits for the imports
        first.start()
        first.join()
        if first.exitcode == 0:
            return context, setup
        print("forked processes cannot use the device: each part starts an interpreter", file=sys.stderr, flush=True)
    return multiprocessing.get_context("spawn"), replace(setup, start="spawn")


def _touch(device: str) -> None:
    import torch

    torch.zeros(1, device=device)


def _run(context: Any, part: Part, setup: Setup, record: Row, on_row: Callable[[], None]) -> None:
    """Run a part to its end or its limit, and complete its record."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = context.Process(target=_child, args=(part, setup, theirs))
    started = time.monotonic()
    process.start()
    theirs.close()
    finished = False
    try:
        while not finished and wait([ours, process.sentinel], setup.seconds_left):
            try:
                if not ours.poll():  # it died, and all it has told is read
                    break
                message = ours.recv()
            except EOFError:
                break
            if isinstance(message, float):
                finished, record["cpu_seconds"] = True, round(message, 2)
            elif isinstance(message, str):
                record["error"] = message
            else:
                record["rows"].append(message)
                on_row()
        timed_out = not finished and process.is_alive() and not setup.seconds_left
    finally:
        _end(process)
        ours.close()
    record["seconds"] = round(time.monotonic() - started, 2)
    if timed_out:
        record |= {"status": "timed out", "error": f"not finished in {record['seconds']:.0f} s"}
    elif not finished and "error" not in record:
        record |= {"status": "failed", "error": f"its process ended with exit code {process.exitcode}"}
    else:
        fine = "error" not in record and all(row.get("passed", True) for row in record["rows"])
        record["status"] = "passed" if fine else "failed"


def _child(part: Part, setup: Setup, pipe: Connection) -> None:
    os.setsid()  # with all that it starts, so that all can be ended
    try:
        part.measure(setup, pipe.send)
    except BaseException as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
    pipe.send(float(sum(os.times()[:4])))  # its own and its children's, on the processor


def _end(process: BaseProcess) -> None:
    """Kill a process and its group; its children are in that too."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have come to make its group
    process.join()


def write_atomically(path: Path, content: Any) -> None:
    """JSON beside the file, then in its place: a reader finds the old or the new, whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
