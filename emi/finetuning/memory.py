"""What to change where the memory does not suffice."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cache.errors import EmiError
from cache.system.memory import is_out_of_memory

if TYPE_CHECKING:
    from emi.finetuning.trainer import FinetuneTrainer


class FinetuneMemoryError(EmiError, MemoryError):
    """A piece of a batch does not fit into memory."""


@contextlib.contextmanager
def advise(trainer: "FinetuneTrainer") -> Iterator[None]:
    """Turn a lack of memory into a sentence that says what helps, and by how much.

    Raises:
        FinetuneMemoryError: in place of what torch raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FinetuneMemoryError(_sentence(trainer)) from error


def _sentence(trainer: "FinetuneTrainer") -> str:
    tuning, seconds = trainer.tuning, trainer.piece_seconds
    longest = min(tuning.max_seconds, float(trainer.train.lengths.max()) / 16_000)
    what = f"{trainer.processes.device.type} has no memory for {seconds:g} s of audio at once"
    ways = []
    if seconds > longest:
        fewer = max(longest, seconds / 2)
        ways.append(
            f"--batch-seconds {fewer:g} takes {100 * fewer / seconds:.0f} % of the memory of activations, and trains "
            "on the same batches"
        )
    if not tuning.checkpointing:
        ways.append("--checkpointing keeps one layer's activations at a time, for 1.5 to 2.0 times the time")
    splits = tuning.freeze != "backbone" or tuning.lora
    if tuning.processes > 1 and trainer.processes.device.type == "cpu":
        ways.append(f"--processes {tuning.processes - 1} leaves more memory to each, for more time")
    if trainer.processes.count > 1 and splits and not tuning.fsdp and not tuning.layerdrop:
        ways.append("--fsdp splits weights, gradients and optimizer over the processes")
    stages, frozen = len(trainer.depth.stages), trainer.depth.never
    if frozen < stages - 1 and not tuning.lora:
        half = (stages - frozen) // 2
        layers = sum(stage.name.startswith("layer ") for stage in trainer.depth.stages[: frozen + half])
        if layers:
            ways.append(
                f"--freeze layers:{layers}, in a new --out, keeps activations, gradients and optimizer of half as many "
                "layers"
            )
    if not ways:
        ways.append(f"--max-seconds below {tuning.max_seconds:g} shortens the longest clips, in a new --out")
    return f"{what}; {'; or '.join(ways)}; then run the command again"
