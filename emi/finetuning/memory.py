"""What to change where the memory does not suffice."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from cache.errors import EmiError
from cache.system.memory import is_out_of_memory
from emi.finetuning.depth import Depth
from emi.finetuning.modalities import LearnedModality
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings


class FinetuneMemoryError(EmiError, MemoryError):
    """A piece of a batch does not fit into memory."""


@dataclass(frozen=True)
class Load:
    """What goes through a backbone together.

    Attributes:
        tuning: settings of the run.
        depth: what of the backbone learns.
        processes: that share the run.
        modality: of the clips.
        at_once: rows that go through the backbone together.
        longest: rows of the longest sample.
    """

    tuning: FinetuneSettings
    depth: Depth
    processes: Processes
    modality: LearnedModality
    at_once: float
    longest: int

    @contextlib.contextmanager
    def advised(self) -> Iterator[None]:
        """Turn a lack of memory into a sentence that says what helps, and by how much.

        Raises:
            FinetuneMemoryError: in place of what torch raises.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            what = f"{self.processes.device.type} has no memory for {self.modality.amount.text(self.at_once)} at once"
            raise FinetuneMemoryError(f"{what}; {'; or '.join(self._ways())}; then run the command again") from error

    def _ways(self) -> list[str]:
        """Return what would take less memory, the least costly first."""
        tuning, depth, processes, modality = self.tuning, self.depth, self.processes, self.modality
        at_once, longest = self.at_once, self.longest
        fewer, amount = max(longest, at_once / 2), modality.amount
        frozen = tuning.freeze == "backbone" and not tuning.lora
        half = (len(depth.stages) - depth.never) // 2
        layers = sum(stage.name.startswith("layer ") for stage in depth.stages[: depth.never + half])
        ways = (
            (
                at_once > longest,
                f"{amount.option} {fewer / amount.unit:g} takes {100 * fewer / at_once:.0f} % of the memory of "
                "activations, and trains on the same batches",
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
                processes.count > 1 and modality.uses_all and not (tuning.fsdp or tuning.layerdrop or frozen),
                "--fsdp splits weights, gradients and optimizer over the processes",
            ),
            (
                half and layers and not tuning.lora,
                f"--freeze layers:{layers}, in a new --out, keeps activations, gradients and optimizer of half as many "
                "layers",
            ),
        )
        return [way for helps, way in ways if helps] or [f"{amount.longest} the longest clips, in a new --out"]
