"""What the machine offers to this process."""

import functools
import os
from pathlib import Path

KILLED = -9
"""Exit code of a process that was sent SIGKILL, as by the kernel where memory runs out; Windows lacks that signal."""


def available_cores() -> int:
    """Cores that this process may use, which a scheduler or a container may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def bfloat16_unit() -> str | None:
    """The processor's instructions that multiply bfloat16, best first, or None; read from Linux, without torch."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    return next((unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags), None)
