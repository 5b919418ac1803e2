"""VGGish's network; names of weights as in the state dict that torchvggish publishes."""

from typing import cast

from torch import Tensor, nn

from extract.backbones.vggish.layout import DIM

CHANNELS: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None)
"""Of the 3 x 3 convolutions; None halves time and frequency."""
EXAMPLE = (96, 64)
"""Spectra and bands of an example: 0.96 s."""
HIDDEN = 4096


class Vggish(nn.Module):
    """Maps examples to 128 numbers, before the authors' PCA and quantisation.

    Args:
        last_relu: whether a ReLU follows the last layer.
    """

    def __init__(self, *, last_relu: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for channels in CHANNELS:
            if channels is None:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
                inputs = channels
        self.features = nn.Sequential(*layers)
        flat = inputs * EXAMPLE[0] * EXAMPLE[1] // 4 ** CHANNELS.count(None)
        self.embeddings = nn.Sequential(
            *(nn.Linear(flat, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM)),
            *([nn.ReLU()] if last_relu else []),
        )

    def forward(self, examples: Tensor) -> Tensor:
        """(examples, 96, 64) → (examples, 128)."""
        maps = self.features(examples.unsqueeze(1))
        return cast(Tensor, self.embeddings(flattened(maps)))


def flattened(maps: Tensor) -> Tensor:
    """(examples, channels, time, frequency) → (examples, time x frequency x channels), the order of the weights."""
    return maps.permute(0, 2, 3, 1).flatten(1)
