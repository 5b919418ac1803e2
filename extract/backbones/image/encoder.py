"""Image encoders of the transformers library: a vector per crop, equal to the library's on each crop alone.

The library's modules are run as they are, but for what a CPU is slow at: linear layers have weights that are laid out
once (`packed_weights`), a GELU is computed with the product before it, and the convolution that cuts an image into
patches is a linear layer over them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.face_rows import Faces, spread, spread_blocks
from extract.backbones.image.models import CLS, MODELS
from extract.backbones.image.processing import Prepare, load_processor
from extract.backbones.library_model import build_model
from extract.backbones.packed_weights import PackedLinear, keep_in_float32, wrong_below_float32
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features
from extract.errors import BackboneError

GELUS = {"GELUActivation": "none", "GELUTanh": "tanh", "GELU": "none"}
"""Classes of transformers, timm and torch, and the approximation that each computes unless it has an `approximate`."""
PERCEPTRONS = (("fc1", "activation_fn", "fc2"), ("fc1", "act", "fc2"), ("up_proj", "act_fn", "down_proj"))
"""Names of a linear layer, of the activation behind it, and of the next layer. The activation reads another layer where
there is a `gate_proj`, and a half of the first one's numbers where the next takes half as many."""
IMAGES_AT_ONCE = {"cpu": 8, "cuda": 128}
"""On a CPU, so that what a layer computes stays in the core's cache."""


class ImageEncoder(nn.Module):
    """See `Blockwise`.

    Args:
        model: of the transformers library, in evaluation mode, on its device, float32 weights, perhaps packed.
        prepare: of its image processor.
        dim: numbers per image.
        cls: whether the class token's last state is taken, not the pooled output.
        dtype: of the matrix products.
    """

    pads = False

    def __init__(self, model: Any, prepare: Prepare, dim: int, *, cls: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self._prepare, self._dim, self._cls, self._dtype = model, prepare, dim, cls, dtype
        self._device: torch.device = next(model.parameters()).device

    def forward(self, clips: Sequence[Faces]) -> Features:
        """See `Backbone`."""
        return spread(clips, self.embed([face for clip in clips for face in clip.faces]))

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`; a block is (rows, side, side, 3) uint8 crops."""
        return spread_blocks(blocks, lambda crops: self.embed(list(crops.cpu().numpy())))

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows."""
        return num_samples

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Map (height, width, 3) uint8 images to (images, dim) float32."""
        step = IMAGES_AT_ONCE[self._device.type]
        groups = [images[at : at + step] for at in range(0, len(images), step)]
        found = [self._run(self._prepare(group).to(self._device)) for group in groups]
        return torch.cat([torch.empty(0, self._dim, device=self._device), *found])

    def _run(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, self._dtype, enabled=self._dtype != torch.float32):
            output = self.model(pixel_values=pixels)
        found: Tensor = output.last_hidden_state[:, 0] if self._cls else output.pooler_output
        return found.flatten(1).float()


def pack(model: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of a model compute with weights that are laid out once, without gradients, in place."""
    before_gelu = _take_gelus(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            linear = PackedLinear(module.weight, module.bias, dtype, before_gelu.get(module))
            _compute_by(module, _over_rows(linear))
        elif isinstance(module, nn.Conv2d) and _cuts_patches(module):
            _compute_by(module, _patches(module, dtype))
    keep_wrong_in_float32(model)


def keep_wrong_in_float32(model: nn.Module) -> None:
    """Let the convolutions that processors compute wrongly below float32 compute in float32."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.dim() > 1 and wrong_below_float32(module.weight):
            keep_in_float32(module)


def _take_gelus(model: nn.Module) -> dict[nn.Module, str]:
    """Take the GELU out of each perceptron of a transformer, and return its approximation by the layer before it."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        children = dict(module.named_children())
        for first, activation, following in PERCEPTRONS:
            gelu, linear = children.get(activation), children.get(first)
            kind = GELUS.get(type(gelu).__name__)
            if kind is None or type(linear) is not nn.Linear or "gate_proj" in children:
                continue
            if getattr(children.get(following), "in_features", None) == linear.out_features:
                found[linear] = getattr(gelu, "approximate", kind)
                setattr(module, activation, nn.Identity())
    return found


def _over_rows(linear: PackedLinear) -> Callable[[Tensor], Tensor]:
    """(…, in) → (…, out)."""
    return lambda x: linear(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.padding in ((0, 0), "valid")
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def _patches(convolution: nn.Conv2d, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """(images, channels, height, width) → (images, out, rows, columns), as the convolution computes them."""
    linear = _over_rows(PackedLinear(convolution.weight.flatten(1), convolution.bias, dtype))
    height, width = convolution.kernel_size

    def forward(pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
        whole = pixels[:, :, : rows * height, : columns * width].unflatten(3, (columns, width))
        patches = whole.unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)  # (images, rows, columns, 3, h, w)
        return linear(patches.flatten(3)).permute(0, 3, 1, 2)

    return forward


def _compute_by(module: nn.Linear | nn.Conv2d, forward: Callable[[Tensor], Tensor]) -> None:
    """Let a module compute otherwise. Its weight is dropped; its dtype is asked for by the library."""
    module.forward = forward  # type: ignore[method-assign, assignment]
    module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)


def load_image_encoder(
    checkpoint: Checkpoint, pooling: str, dim: int, device: torch.device, precision: str
) -> ImageEncoder:
    """Build the model in evaluation mode; every weight that its output needs must be in the file.

    Args:
        checkpoint: where the weights are; classifiers, projections and text towers are not read.
        pooling: "cls" or "pooled".
        dim: numbers per image that it should give.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".

    Raises:
        BackboneError: its files cannot be read, a weight is missing, unexpected or of another shape, or the model does
            not take what its image processor gives.
    """
    model = load_image_model(checkpoint, pooling).to(device)
    pack(model, DTYPES[precision])
    encoder = ImageEncoder(model, load_processor(checkpoint), dim, cls=pooling == CLS, dtype=DTYPES[precision]).eval()
    check_output(encoder, checkpoint, dim)
    return encoder


def load_image_model(checkpoint: Checkpoint, pooling: str, dropout: float | None = None) -> nn.Module:
    """Build the library's model in evaluation mode on the CPU.

    Args:
        checkpoint: where the weights are.
        pooling: "cls" or "pooled".
        dropout: probability of every dropout layer, and of stochastic depth; None keeps the checkpoint's.

    Raises:
        BackboneError: see `load_image_encoder`.
    """
    import transformers

    config, kind = checkpoint.config, MODELS[checkpoint.model_type or ""].kind
    known = getattr(transformers, kind).config_class().to_dict() if dropout is not None else {}
    return build_model(
        checkpoint,
        kind,
        {**config.get("vision_config", config), **{name: dropout for name in known if "drop" in name}},
        checkpoint.tensors(lambda name: not name.startswith("text_")),
        may_differ=partial(_may_differ, cls=pooling == CLS),
    ).eval()


def check_output(encoder: ImageEncoder, checkpoint: Checkpoint, dim: int) -> None:
    """Run an encoder on one image.

    Raises:
        BackboneError: it does not take what its image processor gives, or gives another number than `dim`.
    """
    try:
        with torch.no_grad():
            found = encoder.embed([np.zeros((224, 224, 3), np.uint8)])
    except (RuntimeError, ValueError, TypeError) as error:
        raise BackboneError(
            f"{checkpoint.folder}: the model does not take what its image processor gives ({error}); use the "
            "config.json and preprocessor_config.json that belong together"
        ) from error
    if found.shape != (1, dim):
        raise BackboneError(f"{checkpoint.folder} gives {found.shape[1]} numbers, and its config.json says {dim}")


def _may_differ(model: nn.Module, name: str, *, cls: bool) -> bool:
    """Whether a weight is of no use here: of a classifier, a projection, an unused pooling layer, or for training."""
    inner = getattr(model, "timm_model", model)
    for prefix in (f"{model.base_model_prefix}.", "vision_model."):
        name = name.removeprefix(prefix)
    part, owner = name.partition(".")[0], dict(inner.named_modules()).get(name.rpartition(".")[0])
    parts = {parameter.partition(".")[0] for parameter, _ in inner.named_parameters()}
    left_out = part not in parts or isinstance(owner, nn.Identity)  # which timm has in place of a classifier
    return left_out or name.endswith("mask_token") or (cls and part == "pooler")
