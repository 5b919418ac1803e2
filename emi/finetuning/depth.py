"""Which parts of a backbone learn, from which epoch on, and how fast."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import nn

from emi.finetuning.settings import FinetuneSettings
from extract.backbones import Stage, Trainable
from train_head.errors import TrainSettingsError


class Depth:
    """The stages of a backbone, bottom first, and the number of frozen ones in each epoch.

    Args:
        backbone: to train.
        settings: freeze, unfreeze_every, layer_decay.

    Raises:
        TrainSettingsError: there are no such layers.
    """

    def __init__(self, backbone: Trainable, settings: FinetuneSettings) -> None:
        self._backbone = cast(nn.Module, backbone)
        self.stages, self._settings = backbone.stages(), settings
        self.never = frozen_stages(self.stages, settings.freeze)
        if settings.lora:
            add_adapters(backbone, settings.lora)

    @property
    def adapters(self) -> list[nn.Parameter]:
        """Parameters of the low-rank adapters, as they are now: sharding puts others in their place."""
        return [parameter for name, parameter in self._backbone.named_parameters() if "lora_" in name]

    def frozen(self, epoch: int) -> int:
        """Return the number of stages, from the bottom, that do not learn in an epoch, counted from 1."""
        thawed = (epoch - 1) // self._settings.unfreeze_every if self._settings.unfreeze_every else len(self.stages)
        return max(self.never, len(self.stages) - thawed)

    def arrange(self, epoch: int) -> None:
        """Put the backbone into training mode for an epoch: frozen stages without gradients and dropout."""
        frozen, adapters = self.frozen(epoch), self.adapters
        self._backbone.train(frozen < len(self.stages) or bool(adapters))
        self._backbone.requires_grad_(False)
        for i, stage in enumerate(self.stages):
            for module in stage.modules:
                module.train(i >= frozen or bool(adapters))
                module.requires_grad_(i >= frozen)
        for parameter in adapters:
            parameter.requires_grad_(True)

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups of all parameters that will ever learn, each with its peak learning rate under "peak".

        Norms, biases and other vectors are not decayed, as is usual for transformers (Loshchilov and Hutter's decay
        pulls weights to 0, which is no natural value for a scale).
        """
        found: list[dict[str, Any]] = []
        for i, stage in enumerate(self.stages[self.never :], self.never):
            peak = self._settings.backbone_lr * self._settings.layer_decay ** (len(self.stages) - 1 - i)
            named = [pair for module in stage.modules for pair in module.named_parameters()]
            found += _by_decay([p for name, p in named if "lora_" not in name], peak, weight_decay)
        return [*found, *_by_decay(self.adapters, self._settings.backbone_lr, weight_decay)]


def frozen_stages(stages: Sequence[Stage], freeze: str) -> int:
    """Return the number of stages, from the bottom, that never learn.

    Raises:
        TrainSettingsError: the backbone has no such stage; says what it has.
    """
    names = [stage.name for stage in stages]
    if freeze in ("none", "backbone"):
        return 0 if freeze == "none" else len(stages)
    if freeze == "all-but-attention":
        if names[-1] != "attention":
            raise TrainSettingsError(
                "freeze all-but-attention trains the LA-SE of an IResNet, and the backbone has none; give layers:N, "
                "or a config.json with attention la-se"
            )
        return len(stages) - 1
    if freeze == "cnn":
        return names.index("cnn") + 1 if "cnn" in names else 0
    number = int(freeze.removeprefix("layers:"))
    layers = sum(name.startswith("layer ") for name in names)
    if number > layers:
        raise TrainSettingsError(
            f"freeze {freeze}: the backbone has {layers} layers; give layers:N with N up to that, or freeze backbone"
        )
    return names.index(f"layer {number}") + 1 if number else names.index("layer 1") if layers else 0


def add_adapters(backbone: Trainable, rank: int) -> None:
    """Put low-rank adapters into the backbone, in place.

    Raises:
        TrainSettingsError: peft is not installed.
        BackboneError: the backbone has no place for them.
    """
    module, targets = backbone.adapter_targets()
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainSettingsError(
            "--lora needs peft, which is not installed here: pip install 'emi-mimicry[lora]'"
        ) from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), module)


def merge_adapters(backbone: Trainable) -> None:
    """Add the adapters' products to the weights beside them, and remove the adapters."""
    for parent, name, adapter in _adapters(backbone):
        adapter.merge()
        setattr(parent, name, adapter.get_base_layer())


@contextlib.contextmanager
def adapters_merged(backbone: Trainable) -> Iterator[None]:
    """Compute as the finished run will, with the adapters' products in the weights; restore the weights afterwards.

    In bfloat16 a merged weight and an adapter beside it round differently (0.016 in a correlation, measured).
    """
    layers = [adapter for _, _, adapter in _adapters(backbone)]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(weight)  # subtracting the product again would round


def _adapters(backbone: Trainable) -> list[tuple[nn.Module, str, Any]]:
    """Return each layer with an adapter, after its parent and its name there."""
    from peft.tuners.lora import LoraLayer

    module, _ = backbone.adapter_targets()
    children = [(parent, *named) for parent in module.modules() for named in parent.named_children()]
    return [child for child in children if isinstance(child[2], LoraLayer)]


def _by_decay(parameters: Sequence[nn.Parameter], peak: float, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [sum(size > 1 for size in p.shape) > 1 for p in parameters]
    matrices = [p for p, is_matrix in zip(parameters, decayed, strict=True) if is_matrix]
    vectors = [p for p, is_matrix in zip(parameters, decayed, strict=True) if not is_matrix]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": group, "peak": peak, "weight_decay": decay} for group, decay in groups if group]
