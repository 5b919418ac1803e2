"""What to change where the memory does not suffice."""

import contextlib
from collections.abc import Iterator

from cache.errors import EmiError
from cache.system.memory import is_out_of_memory
from emi.finetuning.depth import Depth
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings


class FinetuneMemoryError(EmiError, MemoryError):
    """A piece of a batch does not fit into memory."""


@contextlib.contextmanager
def advise(
    tuning: FinetuneSettings, depth: Depth, processes: Processes, seconds: float, longest: float
) -> Iterator[None]:
    """Turn a lack of memory into a sentence that says what helps, and by how much.

    Args:
        tuning: settings of the run.
        depth: what of the backbone learns.
        processes: that share the run.
        seconds: audio that goes through the backbone at once.
        longest: seconds of the longest clip.

    Raises:
        FinetuneMemoryError: in place of what torch raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"{processes.device.type} has no memory for {seconds:g} s of audio at once"
        ways = "; or ".join(_ways(tuning, depth, processes, seconds, longest))
        raise FinetuneMemoryError(f"{what}; {ways}; then run the command again") from error


def _ways(tuning: FinetuneSettings, depth: Depth, processes: Processes, seconds: float, longest: float) -> list[str]:
    """Return what would take less memory, the least costly first."""
    fewer, frozen = max(longest, seconds / 2), tuning.freeze == "backbone" and not tuning.lora
    half = (len(depth.stages) - depth.never) // 2
    layers = sum(stage.name.startswith("layer ") for stage in depth.stages[: depth.never + half])
    ways = (
        (
            seconds > longest,
            f"--batch-seconds {fewer:g} takes {100 * fewer / seconds:.0f} % of the memory of activations, and trains "
            "on the same batches",
        ),
        (
            not tuning.checkpointing,
            "--checkpointing keeps one layer's activations at a time, for 1.5 to 2.0 times the time",
        ),
        (
            tuning.processes > 1 and processes.device.type == "cpu",
            f"--processes {tuning.processes - 1} leaves more memory to each, for more time",
        ),
        (
            processes.count > 1 and not (tuning.fsdp or tuning.layerdrop or frozen),
            "--fsdp splits weights, gradients and optimizer over the processes",
        ),
        (
            half and layers and not tuning.lora,
            f"--freeze layers:{layers}, in a new --out, keeps activations, gradients and optimizer of half as many "
            "layers",
        ),
    )
    return [way for helps, way in ways if helps] or [
        f"--max-seconds below {tuning.max_seconds:g} shortens the longest clips, in a new --out"
    ]
