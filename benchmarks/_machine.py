"""The machine that a benchmark runs on: its name, its memory, and processes of their own. Imports no torch."""

import multiprocessing
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """Model name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def peak_mb() -> float:
    """Largest resident memory of this process so far; getrusage would count its parent's."""
    return memory_mb("/proc/self/status", "VmHWM")


def memory_mb(file: str, field: str) -> float:
    """A figure in kB of one of the kernel's files, in MB."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def room_bytes(folder: Path) -> int:
    """What fits on the disk of a folder and in the memory that is free, whichever is less."""
    return int(min(shutil.disk_usage(folder).free, memory_mb("/proc/meminfo", "MemAvailable") * 2**20))


def stored(path: Path) -> tuple[int, int]:
    """(files, bytes) at or below a path."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(files), sum(file.stat().st_size for file in files)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_own_process(preload: Sequence[str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process forked from a server that has imported some libraries and done nothing else.

    Args:
        preload: modules; the script itself comes first, so that its first lines set the path for them.
        function: of a module that the child can import.
        arguments: to be pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *preload])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def header_line() -> str:
    """One line on the machine, for the top of a report."""
    memory = memory_mb("/proc/meminfo", "MemTotal") / 1024
    return f"{cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}"
