"""IResNet as a torch module; names of weights as in the `backbone.pth` that InsightFace's arcface_torch publishes.

LA-SE is added behind the last stage: a weight per place (LANet), then a weight per channel (squeeze and excitation).
"""

from typing import cast

import torch
from torch import Tensor, nn

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.iresnet.config import SIDE, IResNetConfig
from extract.backbones.weights_fit import must_fit, without_counters
from extract.errors import BackboneError

DROPOUT = 0.4
MARK = "attention."
"""Start of the names of LA-SE's weights."""


class Unit(nn.Module):
    """BN, conv 3 x 3, BN, PReLU, conv 3 x 3 with the stride, BN; plus the input, by conv 1 x 1 where sizes differ."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride != 1 or inputs != width
            else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(images, inputs, side, side) → (images, width, side / stride, side / stride)."""
        out = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(maps))))))
        return cast(Tensor, out + (maps if self.downsample is None else self.downsample(maps)))


class LaSe(nn.Module):
    """Local attention, then squeeze and excitation.

    The last layers start at zero. With `doubled`, a gate is 2 sigmoid(0) = 1 then: nothing changes, and gradients flow.

    Args:
        channels: of the maps.
        reduction: channels over hidden ones.
        doubled: whether a gate is 2 sigmoid(x) rather than sigmoid(x).
    """

    def __init__(self, channels: int, reduction: int, *, doubled: bool) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.local = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self._largest = 2.0 if doubled else 1.0
        for last in (self.local[2], self.channel[2]):
            for weight in last.parameters():
                nn.init.zeros_(weight)

    def forward(self, maps: Tensor) -> Tensor:
        """(images, channels, side, side) → the same shape."""
        maps = maps * self._gate(self.local(maps))
        return maps * self._gate(self.channel(maps.mean((2, 3))))[:, :, None, None]

    def _gate(self, x: Tensor) -> Tensor:
        return self._largest * torch.sigmoid(x)


class IResNet(nn.Module):
    """Maps aligned crops to embeddings, which are not normalised.

    Args:
        config: sizes of the layers.
    """

    def __init__(self, config: IResNetConfig) -> None:
        super().__init__()
        inputs = config.widths[0]
        self.conv1 = nn.Conv2d(3, inputs, 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(inputs), nn.PReLU(inputs)
        stages = []
        for units, width in zip(config.units, config.widths, strict=True):
            stages.append(nn.Sequential(Unit(inputs, width, 2), *(Unit(width, width, 1) for _ in range(units - 1))))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attention: nn.Module = nn.Identity()
        if config.attention == "la-se":
            self.attention = LaSe(inputs, config.reduction, doubled=config.gate == "2*sigmoid")
        side = SIDE // 2 ** len(stages)
        self.bn2, self.dropout = nn.BatchNorm2d(inputs), nn.Dropout(DROPOUT)
        self.fc = nn.Linear(inputs * side * side, config.dim)
        self.features = nn.BatchNorm1d(config.dim)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad_(False)  # as in arcface_torch

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, 112, 112) RGB in [-1, 1] → (images, dim)."""
        maps = self.prelu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        flat = self.dropout(self.bn2(self.attention(maps)).flatten(1))
        return cast(Tensor, self.features(self.fc(flat)))


def load_network(checkpoint: Checkpoint) -> IResNet:
    """Build the module on the CPU, in evaluation mode. A LA-SE that the file lacks starts without effect.

    Raises:
        BackboneError: a weight is missing, unknown or of another shape; LA-SE is missing where the configuration says
            that it has been trained.
    """
    config = IResNetConfig.read(checkpoint.config, checkpoint.folder)
    network = IResNet(config)
    tensors = without_counters(checkpoint.tensors(lambda _: True))
    if config.attention == "la-se" and not any(name.startswith(MARK) for name in tensors):
        if config.gate == "sigmoid":
            raise BackboneError(
                f"{checkpoint.folder}: the gate of config.json is sigmoid, so that LA-SE has been trained, and the "
                "weights hold no LA-SE; set gate to 2*sigmoid to add a new one, or attention to none"
            )
        tensors |= {f"{MARK}{name}": tensor for name, tensor in network.attention.state_dict().items()}
    must_fit(tensors, network, checkpoint.folder)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return network.eval()
