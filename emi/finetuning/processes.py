"""The processes that share a training, started by `local_processes`, torchrun or `accelerate launch`."""

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""Time for which processes wait for one another: the first decodes all media alone."""


class Processes:
    """The processes of one training, and what they exchange.

    Args:
        device: "cpu" or "cuda".

    Attributes:
        rank: number of this process.
        count: number of processes.
        first: whether this is the process that writes.
        first_here: whether it is the first of this machine.
        device: of this process.
    """

    def __init__(self, device: str) -> None:
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.rank, self.count = state.process_index, state.num_processes
        self.first = self.rank == 0
        self.first_here = bool(state.is_local_main_process)
        self.device = state.device if self.count > 1 else torch.device(device)

    def share(self, module: nn.Module, *, unused: bool) -> nn.Module:
        """Return the module with gradients averaged over the processes; with one process, the module itself.

        Args:
            module: with parameters that learn.
            unused: whether a step may leave out some of its parameters.
        """
        if self.count == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=unused,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # with one piece per step; those of several add up beside the buckets
        )

    def from_first(self, value: T) -> T:
        """Return the first process's value."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def copy_first(self, module: nn.Module) -> None:
        """Give a module the weights that it has in the first process."""
        if self.count > 1:  # by way of the CPU, or all would unpack them on the first one's GPU
            module.load_state_dict(self.from_first({name: t.cpu() for name, t in module.state_dict().items()}))

    def gather(self, values: list[T]) -> list[T]:
        """Return the values of all processes, by rank."""
        return gather_object(values) if self.count > 1 else values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree(self, here: bool) -> bool:
        """Return whether it holds in every process."""
        return not self.sum(torch.tensor(float(not here), device=self.device))

    def wait(self) -> None:
        """Wait for the other processes to call this too."""
        if self.count > 1:
            dist.barrier()


def first() -> bool:
    """Return whether this is the process that writes and prints."""
    return bool(PartialState().is_main_process)
