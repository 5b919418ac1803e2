"""Turn a published file of weights into a folder for `--backbone`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extract.backbones.checkpoint import CONFIGS, WEIGHTS, save_checkpoint
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.iresnet.network import IResNet
from extract.backbones.vggish.layout import LAST_RELU, MODEL_TYPE
from extract.backbones.vggish.network import Vggish
from extract.backbones.weights_fit import must_fit, without_counters
from extract.errors import BackboneError

Read = Callable[[Mapping[str, Tensor]], tuple[nn.Module, dict[str, Any]]]
_STAGES = range(1, 5)


def write_folder(file: Path, folder: Path, *, attention: str = "la-se", last_relu: bool = True) -> str:
    """Write config.json and model.safetensors of a published file.

    Args:
        file: `backbone.pth` of arcface_torch, or the state dict of torchvggish.
        folder: created where it is missing.
        attention: of an IResNet: "la-se" puts a new LA-SE behind its last stage, which changes nothing before it is
            trained; "none".
        last_relu: of VGGish: whether a ReLU follows its last layer.

    Returns:
        The model_type of the folder.

    Raises:
        BackboneError: the file holds other things than tensors, or not the weights of these networks; the folder holds
            a backbone.
    """
    for name in (CONFIGS[0], WEIGHTS[0]):
        if (folder / name).exists():
            raise BackboneError(f"{folder} holds {name} already; choose another folder, or remove it")
    tensors = without_counters(_load(file))
    if "embeddings.0.weight" in tensors:
        with torch.device("meta"):
            module: nn.Module = Vggish(last_relu=last_relu)
        config = {"model_type": MODEL_TYPE, LAST_RELU: last_relu}
    elif "layer1.0.conv1.weight" in tensors:
        sizes = _sizes(tensors, attention)
        with torch.device("meta"):
            module = IResNet(sizes)
        config = sizes.to_dict()
        module.attention = nn.Identity()  # which no published file holds
    else:
        raise BackboneError(
            f"{file} holds neither an IResNet of arcface_torch nor VGGish of torchvggish; its first weights are "
            f"{', '.join(list(tensors)[:3]) or 'none'}"
        )
    must_fit(tensors, module, file)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, {name: tensor.float() for name, tensor in tensors.items()}, config)
    return str(config["model_type"])


def _sizes(tensors: Mapping[str, Tensor], attention: str) -> IResNetConfig:
    """Read the sizes of an IResNet off the names and shapes of its weights."""
    units = (sum(name.startswith(f"layer{n}.") and name.endswith(".conv1.weight") for name in tensors) for n in _STAGES)
    widths = [tensors[name] for n in _STAGES if (name := f"layer{n}.0.conv2.weight") in tensors]
    default = IResNetConfig()
    return IResNetConfig(
        units=tuple(max(1, count) for count in units),
        widths=tuple(map(len, widths)) if len(widths) == len(_STAGES) else default.widths,
        dim=len(tensors["fc.weight"]) if "fc.weight" in tensors else default.dim,
        attention=attention,
    )


def _load(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise BackboneError(f"{file} is no file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # readers of damaged files raise many types
        raise BackboneError(
            f"{file} cannot be read as tensors alone; it is damaged, or a pickle of a whole model, whose code emi does "
            "not run: save its state_dict() instead"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise BackboneError(f"{file} is no state dict, of names and tensors alone; it holds {held}")
    return content
