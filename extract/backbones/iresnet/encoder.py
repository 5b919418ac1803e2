"""IResNet as a backbone: crops of faces to embeddings of length 1.

Batch normalisation is part of the weights of the convolution before it, or of the linear layer behind it. Only the one
at the start of each unit stays, because the convolution behind it pads with zeros. Maps are channels last, and a few
crops at a time pass through all layers, so that their maps stay in a core's cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.face_rows import spread, spread_blocks
from extract.backbones.iresnet.config import SIDE
from extract.backbones.iresnet.network import IResNet, Unit, load_network
from extract.backbones.packed_weights import PackedConv2d, PackedLinear
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features
from extract.faces.images import squares
from extract.faces.reading import FaceCrops

CROPS_ON_CPU, CROPS_ON_GPU = 8, 256
"""Crops that pass through the layers at a time."""


class IResNetBackbone:
    """See `extract.backbones.protocol.Blockwise`; rows that are not valid are zeros.

    Args:
        network: in evaluation mode, on `device`.
        device: to compute on.
        dtype: of the convolutions; LA-SE and the last layer are computed in float32.
    """

    pads = False

    def __init__(self, network: IResNet, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._dim = network.fc.out_features
        self._stem = PackedConv2d(*folded(network.conv1, network.bn1), dtype, (SIDE, SIDE), padding=1)
        self._slopes = network.prelu.weight.detach().to(dtype)
        self._units, side = [], SIDE
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        for unit in cast("list[Unit]", [unit for stage in stages for unit in stage]):
            self._units.append(PackedUnit(unit, dtype, side))
            side //= unit.conv2.stride[0]
        self._attention = network.attention.float()
        self._last = PackedLinear(*_folded_end(network, side), torch.float32)
        self._together = CROPS_ON_GPU if device.type == "cuda" else CROPS_ON_CPU

    def __call__(self, clips: Sequence[FaceCrops]) -> Features:
        """Return (rows of all clips, dim) float32."""
        return spread(clips, self._embed([face for clip in clips for face in clip.faces]))

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`; a block is (rows, side, side, 3) uint8 crops."""
        return spread_blocks(blocks, lambda crops: self._embed(list(crops.cpu().numpy())))

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows."""
        return num_samples

    def _embed(self, faces: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Map (height, width, 3) uint8 crops to (crops, dim) float32 of length 1."""
        parts = torch.from_numpy(squares(faces, SIDE)).split(self._together)
        maps = [self._maps(part.to(self._device)) for part in parts if len(part)]
        if not maps:
            return torch.zeros(0, self._dim, device=self._device)
        return functional.normalize(self._last(torch.cat(maps)))

    def _maps(self, crops: Tensor) -> Tensor:
        """(crops, 112, 112, 3) uint8 → (crops, side x side x channels) float32."""
        images = (crops.float() / 127.5 - 1).to(self._dtype).permute(0, 3, 1, 2)  # channels last in memory
        maps = functional.prelu(self._stem(images), self._slopes)
        for unit in self._units:
            maps = unit(maps)
        attended: Tensor = self._attention(maps.float())
        return attended.permute(0, 2, 3, 1).flatten(1)


class PackedUnit:
    """A `Unit` without gradients.

    Args:
        unit: with its weights.
        dtype: of the convolutions and of what lies between them.
        side: of its input, in places.
    """

    def __init__(self, unit: Unit, dtype: torch.dtype, side: int) -> None:
        scale, shift = _as_scale(unit.bn1)
        self._scale, self._shift = (x.to(dtype)[None, :, None, None] for x in (scale, shift))
        self._first = PackedConv2d(*folded(unit.conv1, unit.bn2), dtype, (side, side), padding=1)
        self._slopes = unit.prelu.weight.detach().to(dtype)
        stride = unit.conv2.stride[0]
        self._second = PackedConv2d(*folded(unit.conv2, unit.bn3), dtype, (side, side), stride=stride, padding=1)
        self._shortcut: Callable[[Tensor], Tensor] = _unchanged
        if unit.downsample is not None:
            self._shortcut = PackedConv2d(*folded(*unit.downsample), dtype, (side, side), stride=stride)

    def __call__(self, maps: Tensor) -> Tensor:
        """See `Unit.forward`."""
        inside = functional.prelu(self._first(torch.addcmul(self._shift, maps, self._scale)), self._slopes)
        return self._second(inside).add_(self._shortcut(maps))


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that includes the batch normalisation behind it."""
    scale, shift = _as_scale(norm)
    return (conv.weight.detach().double() * scale[:, None, None, None]).float(), shift.float()


def _as_scale(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the float64 scale and shift of a batch normalisation in evaluation mode."""
    mean, variance = (cast(Tensor, x).double() for x in (norm.running_mean, norm.running_var))
    scale = norm.weight.detach().double() / (variance + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - mean * scale


def _folded_end(network: IResNet, side: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the linear layer with the normalisations around it, for maps with channels last."""
    before, after = _as_scale(network.bn2), _as_scale(network.features)
    weight = network.fc.weight.detach().double().unflatten(1, (-1, side * side))  # (dim, channels, places)
    bias = network.fc.bias.detach().double() + (weight.sum(2) @ before[1])
    weight = weight * before[0][:, None] * after[0][:, None, None]
    return weight.transpose(1, 2).flatten(1).float(), (bias * after[0] + after[1]).float()


def _unchanged(maps: Tensor) -> Tensor:
    return maps


def load_iresnet(checkpoint: Checkpoint, device: torch.device, precision: str) -> IResNetBackbone:
    """Build the backbone.

    Args:
        checkpoint: where the weights are.
        device: where it will run.
        precision: of the convolutions: "fp32" or "bf16".

    Raises:
        BackboneError: see `load_network`.
    """
    network = load_network(checkpoint)
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # which would round the inputs of convolutions to 10 bits
    return IResNetBackbone(network.to(device), device, DTYPES[precision])
