"""VGGish as a backbone: one example for each row, at any hop, with the spectra of a batch computed once.

Rows overlap: at 25 rows per second, each spectrum is part of 24 examples. Rows are those that start within the clip;
zeros follow its end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.packed_weights import PackedConv2d, PackedLinear
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features
from extract.backbones.sound_rows import STEP, Sound, padded, placed, row_starts, starts_at, times_of
from extract.backbones.vggish.layout import LAST_RELU
from extract.backbones.vggish.log_mel import WINDOW, LogMel
from extract.backbones.vggish.network import EXAMPLE, Vggish, flattened
from extract.backbones.weights_fit import must_fit

SAMPLES = (EXAMPLE[0] - 1) * STEP + WINDOW
"""Of an example."""
EXAMPLES_ON_CPU, EXAMPLES_ON_GPU = 8, 512
"""Examples that pass through the convolutions at a time: on a CPU, few enough for a core's cache."""


class VggishBackbone:
    """See `extract.backbones.protocol.BlockwiseAtTimes`.

    Args:
        network: the layers, with their weights on `device`.
        hop_seconds: from one row to the next, of clips without times.
        device: to compute on.
        dtype: of the matrix products; spectra are computed in float64.
    """

    pads = False

    def __init__(self, network: Vggish, hop_seconds: float, device: torch.device, dtype: torch.dtype) -> None:
        self._hop, self._device, self._dtype = hop_seconds, device, dtype
        self._log_mel = LogMel(device)
        self._layers, self._linear = _packed(network, dtype)
        self._together = EXAMPLES_ON_GPU if device.type == "cuda" else EXAMPLES_ON_CPU

    def num_frames(self, num_samples: int) -> int:
        """Return the number of rows that start within a clip, where it has no times."""
        return len(row_starts(self._hop, num_samples))

    def __call__(self, sounds: Sequence[Sound]) -> Features:
        """See `Backbone`."""
        clips = [placed(sound, self._hop) for sound in sounds]
        signals, starts, offset = [], [], 0
        for samples, rows in clips:
            signals.append(padded(samples, int(rows[-1]) * STEP + SAMPLES))
            starts.append(rows + offset)
            offset += len(signals[-1]) // STEP
        rows = self._rows(torch.cat(signals), torch.cat(starts))
        return Features(rows, [len(rows) for _, rows in clips], times=times_of(sounds))

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`."""
        return self._in_blocks(blocks, lambda samples: row_starts(self._hop, samples))

    def at_times(self, blocks: Iterable[Tensor], times: Tensor) -> Iterator[Tensor]:
        """See `BlockwiseAtTimes`."""
        starts = starts_at(times)
        return self._in_blocks(blocks, lambda _: starts)

    def _in_blocks(self, blocks: Iterable[Tensor], starts_of: Callable[[int], Tensor]) -> Iterator[Tensor]:
        """Hold the samples from the last computed row on; `starts_of` gives the rows of so many samples."""
        held, first, done = torch.zeros(0, device=self._device), 0, 0
        for block in blocks:
            held = torch.cat([held, block])
            starts = starts_of(first * STEP + len(held))[done:]
            whole = starts[(starts - first) * STEP + SAMPLES <= len(held)]
            if len(whole):
                yield self._rows(held, whole - first)
                done += len(whole)
                held = held[(int(whole[-1]) - first) * STEP :]
                first = int(whole[-1])
        rest = starts_of(first * STEP + len(held))[done:] - first
        if len(rest):
            yield self._rows(padded(held, int(rest[-1]) * STEP + SAMPLES), rest)

    def _rows(self, samples: Tensor, starts: Tensor) -> Tensor:
        """Return (rows, 128) float32 of examples that start at these points and lie within (samples,)."""
        spectra = self._log_mel(samples).to(self._dtype)
        points = starts.to(self._device)[:, None] + torch.arange(EXAMPLE[0], device=self._device)
        rows = torch.cat([self._convolve(spectra[some]) for some in points.split(self._together)])
        for linear, relu in self._linear:
            rows = linear(rows)
            rows = rows.relu_() if relu else rows
        return rows.float()

    def _convolve(self, examples: Tensor) -> Tensor:
        """(examples, 96, 64) → (examples, 12288)."""
        maps = examples.unsqueeze(1)
        for layer in self._layers:
            maps = layer(maps)
        return flattened(maps)


def _packed(
    network: Vggish, dtype: torch.dtype
) -> tuple[list[Callable[[Tensor], Tensor]], list[tuple[PackedLinear, bool]]]:
    """Lay out the weights: the layers up to the last maps, and the linear layers with whether a ReLU follows."""
    layers: list[Callable[[Tensor], Tensor]] = []
    size = EXAMPLE
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            layers.append(PackedConv2d(layer.weight, layer.bias, dtype, size, padding=1, relu=True))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(_halved)
            size = size[0] // 2, size[1] // 2
    embeddings = list(network.embeddings)
    linear = [
        (PackedLinear(layer.weight, layer.bias, dtype), isinstance(after, nn.ReLU))
        for layer, after in zip(embeddings, [*embeddings[1:], None], strict=True)
        if isinstance(layer, nn.Linear)
    ]
    return layers, linear


def _halved(maps: Tensor) -> Tensor:
    return functional.max_pool2d(maps, 2)


def load_vggish(checkpoint: Checkpoint, hop_seconds: float, device: torch.device, precision: str) -> VggishBackbone:
    """Build the backbone; every weight must be in the file.

    Args:
        checkpoint: where the weights are.
        hop_seconds: as for `VggishBackbone`.
        device: where it will run.
        precision: of the matrix products: "fp32" or "bf16".

    Raises:
        BackboneError: a weight is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        network = Vggish(last_relu=checkpoint.config[LAST_RELU])
    tensors = checkpoint.tensors(lambda _: True)
    must_fit(tensors, network, checkpoint.folder)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # which would round the inputs of convolutions to 10 bits
    return VggishBackbone(network.to(device), hop_seconds, device, DTYPES[precision])
