"""IResNet with gradients. Every batch normalisation keeps the statistics of its checkpoint, in training too.

The frames of a clip are too much alike to measure statistics on; with those of the checkpoint, a crop's embedding does
not depend on its batch, as in extraction.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as compute_again

from extract.backbones.checkpoint import WEIGHTS, Checkpoint, save_checkpoint
from extract.backbones.face_rows import Faces, in_groups, keep_statistics, spread
from extract.backbones.iresnet.config import SIDE, IResNetConfig
from extract.backbones.iresnet.network import load_network
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features, Regularisation, Stage
from extract.backbones.weights_fit import without_counters
from extract.errors import BackboneError
from extract.faces.images import squares


class TrainableIResNet(nn.Module):
    """See `Trainable`.

    Args:
        checkpoint: what it is loaded from.
        dtype: of the convolutions; LA-SE and the last layer are computed in float32.
        regularisation: dropout before the last layer, and checkpointing by residual unit.
    """

    pads = False

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, regularisation: Regularisation) -> None:
        super().__init__()
        self.network, self._dtype = load_network(checkpoint), dtype
        self._config = IResNetConfig.read(checkpoint.config, checkpoint.folder)
        self._checkpointing = regularisation.checkpointing
        if regularisation.dropout is not None:
            self.network.dropout.p = regularisation.dropout

    def forward(self, clips: Sequence[Faces]) -> Features:
        """See `Backbone`."""
        faces = [face for clip in clips for face in clip.faces]
        return spread(clips, in_groups(self, self._embed, faces, self._empty))

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows."""
        return num_samples

    def stages(self) -> list[Stage]:
        """See `Trainable`. LA-SE is last, although the output follows it: it learns first, and alone if need be."""
        network = self.network
        attention = [Stage("attention", [network.attention])] if self._config.attention != "none" else []
        return [
            Stage("cnn", [network.conv1, network.bn1, network.prelu]),
            *(Stage(f"layer {i}", [layer]) for i, layer in enumerate(self._layers, 1)),
            Stage("output", [network.bn2, network.dropout, network.fc]),
            *attention,
        ]

    def adapter_targets(self) -> tuple[nn.Module, list[str]]:
        """See `Trainable`.

        Raises:
            BackboneError: always.
        """
        raise BackboneError(
            "an IResNet has no linear layers for adapters; leave out --lora, and give --freeze all-but-attention or "
            "layers:3"
        )

    def save(self, folder: Path) -> None:
        """See `Trainable`."""
        save_checkpoint(folder, without_counters(self.network.state_dict()), self._config.to_dict())

    def restore(self, folder: Path) -> None:
        """See `Trainable`."""
        counters = {name: t for name, t in self.network.state_dict().items() if name.endswith("num_batches_tracked")}
        self.network.load_state_dict(load_file(folder / WEIGHTS[0]) | counters)

    @property
    def _empty(self) -> Tensor:
        return self.network.fc.weight.new_zeros(0, self._config.dim)

    def _embed(self, faces: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Map (height, width, 3) uint8 crops to (crops, dim) float32 of length 1."""
        network = self.network
        keep_statistics(network)
        device = network.fc.weight.device
        images = torch.from_numpy(squares(faces, SIDE)).to(device).float().div(127.5).sub(1).permute(0, 3, 1, 2)
        # with channels last, oneDNN's backward pass of convolutions with 4 channels frees memory twice (torch 2.11)
        images = images.contiguous()
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            maps = network.prelu(network.bn1(network.conv1(images)))
            for unit in (unit for stage in self._layers for unit in stage):
                again = self._checkpointing and self.training and torch.is_grad_enabled()
                maps = compute_again(unit, maps, use_reentrant=False) if again else unit(maps)
        flat = network.dropout(network.bn2(network.attention(maps.float())).flatten(1))
        return functional.normalize(cast(Tensor, network.features(network.fc(flat))))

    @property
    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.network.layer1, self.network.layer2, self.network.layer3, self.network.layer4


def load_trainable_iresnet(
    checkpoint: Checkpoint, device: torch.device, precision: str, regularisation: Regularisation
) -> TrainableIResNet:
    """Build the network in evaluation mode.

    Args:
        checkpoint: where the weights are.
        device: where it will run.
        precision: of the convolutions: "fp32" or "bf16".
        regularisation: what training mode changes.

    Raises:
        BackboneError: see `extract.backbones.iresnet.network.load_network`.
    """
    return TrainableIResNet(checkpoint, DTYPES[precision], regularisation).eval().to(device)
