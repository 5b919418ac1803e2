"""Image encoders of the transformers library and of timm with gradients: their own modules, fed as in extraction.

Batch normalisation keeps the checkpoint's statistics (see `extract.backbones.face_rows.keep_statistics`).
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extract.backbones.checkpoint import CONFIGS, Checkpoint, find_checkpoint
from extract.backbones.face_rows import in_groups, keep_statistics
from extract.backbones.image.encoder import ImageEncoder, check_output, keep_wrong_in_float32, load_image_model
from extract.backbones.image.models import CLS, POOLED
from extract.backbones.image.processing import load_processor
from extract.backbones.library_model import checkpoint_layers
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Regularisation, Stage
from extract.errors import BackboneError

LAYERS = ("layer", "layers", "blocks", "stages")
"""What models call the list of their layers; the outermost counts."""
ADAPTED = (("q_proj", "v_proj"), ("query", "value"), ("qkv",))
"""What models call the projections to query and value."""


class TrainableImageEncoder(ImageEncoder):
    """See `Trainable`.

    Args:
        checkpoint: what the model was loaded from; `save` copies how it prepares images.
        model: see `ImageEncoder`; its linear layers keep their weights.
        dim: numbers per image.
        cls: whether the class token's last state is taken, not the pooled output.
        dtype: of the matrix products.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any, dim: int, *, cls: bool, dtype: torch.dtype) -> None:
        super().__init__(model, load_processor(checkpoint), dim, cls=cls, dtype=dtype)
        self._checkpoint = checkpoint

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Map (height, width, 3) uint8 images to (images, dim) float32."""
        keep_statistics(self.model)
        device = next(self.model.parameters()).device
        empty = torch.empty(0, self._dim, device=device)
        return in_groups(self.model, lambda group: self._run(self._prepare(group).to(device)), images, empty)

    def stages(self) -> list[Stage]:
        """See `Trainable`: what lies before the layers, each layer, and what lies behind them.

        Raises:
            BackboneError: the model has no list of layers.
        """
        layers = self._layers()
        inside = {id(part) for layer in layers for part in layer.modules()}
        before, behind = list[nn.Module](), list[nn.Module]()
        found = before
        for part in _around(self.model, inside):
            if id(part) in inside:
                found = behind
            elif not (self._cls and part is getattr(self.model, "pooler", None)):  # which nothing reads
                found.append(part)
        return [
            Stage("cnn", before),
            *(Stage(f"layer {i}", [layer]) for i, layer in enumerate(layers, 1)),
            *([Stage("output", behind)] if any(True for part in behind for _ in part.parameters()) else []),
        ]

    def adapter_targets(self) -> tuple[nn.Module, list[str]]:
        """See `Trainable`: query and value, as in the LoRA paper (Hu et al. 2021, section 4.2).

        Raises:
            BackboneError: the model has no such layers.
        """
        names = {name.rpartition(".")[2] for name, _ in self.model.named_modules()}
        for wanted in ADAPTED:
            if names.issuperset(wanted):
                return self.model, list(wanted)
        raise BackboneError(
            f"{self._checkpoint.folder} has no query and value layers for adapters; leave out --lora, and freeze the "
            "layers that should not be trained"
        )

    def save(self, folder: Path) -> None:
        """See `Trainable`."""
        self.model.save_pretrained(folder)
        for name in CONFIGS[1:]:
            if (self._checkpoint.folder / name).is_file():
                shutil.copyfile(self._checkpoint.folder / name, folder / name)

    def restore(self, folder: Path) -> None:
        """See `Trainable`."""
        saved = load_image_model(find_checkpoint(str(folder)), CLS if self._cls else POOLED)
        self.model.load_state_dict(saved.state_dict())

    def _layers(self) -> list[nn.Module]:
        inner = getattr(self.model, "timm_model", self.model)
        if all(hasattr(inner, f"layer{i}") for i in (1, 2, 3, 4)):  # ResNets of timm
            return [getattr(inner, f"layer{i}") for i in (1, 2, 3, 4)]
        lists = [
            part
            for name, part in sorted(inner.named_modules(), key=lambda named: named[0].count("."))
            if name.rpartition(".")[2] in LAYERS and isinstance(part, nn.ModuleList | nn.Sequential)
        ]
        if not lists:
            raise BackboneError(
                f"{self._checkpoint.folder} has no list of layers that emi knows ({', '.join(LAYERS)}), so it cannot "
                "be trained; extract its features and train a head on them with `emi train-head`"
            )
        return list(lists[0])


def _around(model: nn.Module, inside: set[int]) -> Iterator[nn.Module]:
    """Yield the parts of a model in order: modules with none of the layers in them, single weights, and the layers."""
    own = list(model.parameters(recurse=False))
    if own:
        yield nn.ParameterList(own)
    for part in model.children():
        if id(part) in inside or not any(id(one) in inside for one in part.modules()):
            yield part
        else:
            yield from _around(part, inside)


def load_trainable_image_encoder(
    checkpoint: Checkpoint,
    pooling: str,
    dim: int,
    device: torch.device,
    precision: str,
    regularisation: Regularisation,
) -> TrainableImageEncoder:
    """Build the model in evaluation mode.

    Args:
        checkpoint: where the weights are.
        pooling: "cls" or "pooled".
        dim: numbers per image that it should give.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".
        regularisation: dropout and checkpointing.

    Raises:
        BackboneError: see `load_image_encoder`; or its layers cannot be checkpointed.
    """
    model: Any = load_image_model(checkpoint, pooling, regularisation.dropout)
    if regularisation.dropout is not None:
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = regularisation.dropout
    if regularisation.checkpointing:
        if not model.supports_gradient_checkpointing:
            raise BackboneError(
                f"{checkpoint.folder}: transformers cannot checkpoint the layers of a {checkpoint.model_type} model; "
                "leave out --checkpointing, and give a lower --batch-crops"
            )
        checkpoint_layers(model)
    keep_wrong_in_float32(model)
    encoder = TrainableImageEncoder(checkpoint, model.to(device), dim, cls=pooling == CLS, dtype=DTYPES[precision])
    check_output(encoder.eval(), checkpoint, dim)
    return encoder
