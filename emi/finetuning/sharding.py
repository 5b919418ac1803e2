"""Weights, gradients and optimizer state split over the processes: torch's FSDP2 (Zhao et al. 2023), layer by layer.

A model is sharded only while it trains. Before that every process has loaded the whole model, and at the end it is
built whole again. Files are always whole, so that a run may resume with another number of processes.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from emi.finetuning.model import BackboneWithHead
from emi.finetuning.settings import FinetuneSettings
from train_head.errors import TrainSettingsError

T = TypeVar("T")


def check_sharding(tuning: FinetuneSettings, processes: int) -> None:
    """Refuse to shard over a single process, which would need as much memory as before.

    Raises:
        TrainSettingsError: says how several are started.
    """
    if tuning.fsdp and processes == 1:
        raise TrainSettingsError(
            "--fsdp splits the weights over several processes, and this is one; give --processes 2, or start torchrun, "
            "or give --no-fsdp, which changes results by rounding only"
        )


def shard(model: BackboneWithHead, whole: int, device: torch.device) -> None:
    """Split a model's parameters over the processes, in place; the optimizer must be made afterwards.

    A layer's weights are gathered while it is computed, forward and backward. Parameters outside such stages (the head,
    and small parts around the layers) are gathered for the whole pass.

    Args:
        model: whole, the same in every process, on its device.
        whole: number of stages, from the bottom, that stay whole, since each process computes them for itself
            (`ClipInputs`); they never learn.
        device: on which the processes exchange tensors.
    """
    stages = cast(Any, model.backbone).stages()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for stage in stages[whole:]:
        if stage.called_once:
            for module in stage.modules:
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
    alone = {p for stage in stages[:whole] for module in stage.modules for p in module.parameters()}
    # the root too is split again after each pass, so that `Depth.arrange` finds the parameters that the optimizer has
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=alone)
    register_fsdp_forward_method(cast(nn.Module, model), "predict")


def gathered(state: T, *, keep: bool) -> T:
    """Return a state with whole tensors in memory in place of sharded ones; all processes must call this.

    Args:
        state: a tensor, or dicts and lists of them.
        keep: whether this process wants them; the others get empty ones, and never hold more than one tensor.
    """

    def whole(tensor: Any) -> Any:
        if not isinstance(tensor, DTensor):
            return tensor
        found = tensor.full_tensor().detach()
        return found.cpu() if keep else found.new_empty(0)

    return _mapped(state, whole)


def outline(state: T) -> T:
    """Return a state that takes no memory: tensors of the same shapes without values, except single numbers."""
    return _mapped(state, lambda t: torch.empty_like(t, device="meta") if isinstance(t, Tensor) and t.ndim else t)


def _mapped(state: Any, change: Callable[[Any], Any]) -> Any:
    """Return a state of nested dicts and lists with each value changed."""
    if isinstance(state, dict):
        return {key: _mapped(value, change) for key, value in state.items()}
    return [_mapped(value, change) for value in state] if isinstance(state, list) else change(state)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that the first process has; all processes must call this.

    Args:
        whole: the tensor; its outline in the other processes.
        like: the tensor it replaces: sharded, or whole in every process.
    """
    whole = torch.empty_like(whole, device=like.device) if whole.is_meta else whole.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements)
    if dist.is_initialized():
        dist.broadcast(whole, src=0)
    return whole


def state_of(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer, split as its parameters are.

    Args:
        optimizer: with its parameters.
        state: `state_dict` of one with the same parameters; its outline in all processes but the first.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {key: part_of(v, parameters[i]) if v.ndim else v for key, v in own.items()}  # or the count of steps
        for i, own in state["state"].items()
    }
    return state | {"state": moments}


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return an average for `AveragedModel` of local parts; torch's own refuses models that are sharded in part."""
    average = get_ema_multi_avg_fn(decay)
    return lambda averaged, current, number: average(
        [local(tensor) for tensor in averaged], [local(tensor) for tensor in current], number
    )
