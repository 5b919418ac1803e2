"""The three networks of MTCNN with their trained weights; inputs are RGB in [-1, 1]."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from extract.faces.mtcnn.weights import read_arrays

ACTIVATIONS = 256
"""Width of O-Net's last hidden layer."""
_TO_FILE = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
_FROM_FILE = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
Net = TypeVar("Net", bound=nn.Module)


def _convolution(channels: int, out: int, kernel: int, pool: int | None = None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel), nn.PReLU(out)]
    if pool:
        layers.append(nn.MaxPool2d(pool, 2, ceil_mode=True))
    return nn.Sequential(*layers)


class ProposalNet(nn.Module):
    """P-Net: a face probability and a box correction for each window of 12 x 12 pixels, two pixels apart.

    Args:
        width: channels of the first convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(3, width, 3, pool=2), _convolution(width, 16, 3), _convolution(16, 32, 3)
        )
        self.corrections, self.logits = nn.Linear(32, 4), nn.Linear(32, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, 3, height, width) to states (batch, rows, columns, 32) and scores (batch, rows, columns).

        Corrections are computed from the states of the few windows that pass. The probability is a sigmoid of the
        difference of the two logits: a softmax over two numbers takes longer than a convolution.
        """
        states = self.trunk(images).permute(0, 2, 3, 1)
        weight, bias = self.logits.weight, self.logits.bias
        return states, (states @ (weight[1] - weight[0]) + (bias[1] - bias[0])).sigmoid()


class CropNet(nn.Module):
    """R-Net or O-Net: judges square crops.

    Args:
        convolutions: the trunk.
        flat: numbers that leave it.
        hidden: width of the hidden layer.
        outputs: width of each output; the last is the two logits.
    """

    def __init__(self, convolutions: Sequence[nn.Module], flat: int, hidden: int, outputs: Sequence[int]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*convolutions)
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.PReLU(hidden))
        self.heads = nn.ModuleList(nn.Linear(hidden, width) for width in outputs)

    def activations(self, crops: Tensor) -> Tensor:
        """Map (crops, 3, side, side) to (crops, hidden)."""
        return self.hidden(self.trunk(crops).permute(0, 3, 2, 1).flatten(1))  # flat order: width, height, channel

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Map (crops, 3, side, side) to the outputs, the last one as (crops,) probabilities of a face."""
        hidden = self.activations(crops)
        *outputs, logits = (head(hidden) for head in self.heads)
        return *outputs, logits.softmax(dim=1)[:, 1]


def proposal_net() -> ProposalNet:
    """Return P-Net with its weights.

    Its ten first channels are filled up with zeros to a whole vector register: P-Net then takes two thirds of the time.
    """
    trained, net = _load(ProposalNet(10), "pnet"), ProposalNet(16)
    for parameter, weights in zip(net.parameters(), trained.parameters(), strict=True):
        parameter.data.zero_()[tuple(map(slice, weights.shape))] = weights
    return _frozen(net)


def refinement_net() -> CropNet:
    """Return R-Net: crops of 24 pixels to box corrections (crops, 4) and probabilities."""
    trunk = [_convolution(3, 28, 3, pool=3), _convolution(28, 48, 3, pool=3), _convolution(48, 64, 2)]
    return _load(CropNet(trunk, 576, 128, (4, 2)), "rnet")


def output_net() -> CropNet:
    """Return O-Net: crops of 48 pixels to box corrections (crops, 4), landmarks (crops, 10), probabilities.

    Landmarks are five x, then five y, as fractions of the crop.
    """
    trunk = [
        _convolution(3, 32, 3, pool=3),
        _convolution(32, 64, 3, pool=3),
        _convolution(64, 64, 3, pool=2),
        _convolution(64, 128, 2),
    ]
    return _load(CropNet(trunk, 1152, ACTIVATIONS, (4, 10, 2)), "onet")


def _load(net: Net, file: str) -> Net:
    """Fill in the weights: TensorFlow keeps (height, width, in, out) and (in, out) where torch keeps the reverse.

    Convolutions of one pixel are written as linear layers.
    """
    parameters = list(net.parameters())
    shapes = [tuple(p.permute(*_TO_FILE[p.ndim]).shape) for p in parameters]
    for parameter, array in zip(parameters, read_arrays(file, shapes), strict=True):
        parameter.data.copy_(array.permute(*_FROM_FILE[array.ndim]))
    return _frozen(net)


def _frozen(net: Net) -> Net:
    """Prepare for inference; with channels last, pooling takes a fifth of the time."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net.requires_grad_(False).eval()
