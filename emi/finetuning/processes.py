"""The processes that share a training, started by `local_processes`, torchrun or `accelerate launch`."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""For which processes wait for one another: the first decodes all media alone."""


class Processes:
    """Who else trains, and what they exchange.

    Args:
        device: "cpu" or "cuda".

    Attributes:
        rank: number of this process.
        count: how many there are.
        first_here: whether it is the first of this machine.
        device: this one's own.
    """

    def __init__(self, device: str) -> None:
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.rank, self.count = state.process_index, state.num_processes
        self.first_here = bool(state.is_local_main_process)
        self.device = state.device if self.count > 1 else torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, module: nn.Module, *, unused: bool) -> nn.Module:
        """The module with gradients that are averaged over the processes; itself where there is one.

        Args:
            module: with parameters that learn.
            unused: whether a step may leave out some of them.
        """
        if self.count == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module,
            device_ids=devices,
            find_unused_parameters=unused,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # of one piece a step; those of more add up beside the buckets
        )

    def from_first(self, value: T) -> T:
        """What the first process has."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def copy_first(self, module: nn.Module) -> None:
        """Give a module the weights that it has in the first process."""
        if self.count > 1:  # by way of the CPU, or all would unpack them on the first one's GPU
            module.load_state_dict(self.from_first({name: t.cpu() for name, t in module.state_dict().items()}))

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree(self, here: bool) -> bool:
        """Whether it is so in every process."""
        return not self.sum(torch.tensor(float(not here), device=self.device))

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return bool(PartialState().is_main_process)


def finite(gradients: Iterable[Tensor]) -> bool:
    """Whether no gradient holds NaN or infinity."""
    found = list(gradients)
    return not found or bool(torch.isfinite(nn.utils.get_total_norm(found)))
