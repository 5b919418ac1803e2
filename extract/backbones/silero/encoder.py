"""The encoder of silero-vad (MIT licence, weights inside its wheel) as a batched torch module.

Voice activity detection, not valence-arousal-dominance: it serves as a small backbone that needs no download.

The weights are those of `silero_vad.jit`, the model that the package itself streams. The wheel's
`silero_vad_16k.safetensors` holds another training run (silero-vad 6.2.1 to 6.2.3: speech probabilities differ by up
to 0.23 from the package's own), so it is not used.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from extract.backbones.blocks import regrouped
from extract.backbones.checkpoint import WEIGHTS, save_checkpoint
from extract.backbones.protocol import Features, Stage
from extract.backbones.silero.layout import (
    BINS,
    CHANNELS,
    CONTEXT,
    HIDDEN,
    LAYOUT,
    MODEL_TYPE,
    STFT_HOP,
    STFT_SIZE,
    STRIDES,
    WINDOW,
)
from extract.errors import BackboneError

ENCODE_WINDOWS = 512
"""Windows encoded at a time: their intermediate values stay in a core's cache."""


class SileroBackbone(nn.Module):
    """Maps waveforms to (frames, 384) every 32 ms: output of the convolutions, then the LSTM's h and c (128 each).

    All windows of a batch go through the convolutions together. Each convolution is one matrix product over rows of
    (kernel x channels), five times as fast as oneDNN's convolutions at these sizes. The LSTM steps through time over
    clips sorted by length, so that nothing is computed on padding. Differentiable.
    """

    pads = False

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 2 * BINS, STFT_SIZE, STFT_HOP, bias=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in itertools.pairwise(CHANNELS))
        self.rnn = nn.LSTMCell(CHANNELS[-1], HIDDEN)

    def num_frames(self, num_samples: int) -> int:
        """Windows of 512 samples, the last one zero-padded; at least one."""
        return max(1, -(-num_samples // WINDOW))

    def forward(self, waveforms: Sequence[Tensor]) -> Features:
        """See `Backbone`."""
        lengths = [self.num_frames(len(w)) for w in waveforms]
        windows = torch.cat([self._windows(w, n) for w, n in zip(waveforms, lengths, strict=True)])
        bases, taps = self._bases(), self._taps()
        encoded = torch.cat([self._encode(block, bases, taps) for block in windows.split(ENCODE_WINDOWS)])
        return Features(torch.cat([encoded, self._recur(encoded, lengths)[0]], dim=1), lengths)

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`: a block starts with the last samples and the LSTM's state of the block before."""
        bases, taps = self._bases(), self._taps()
        before, state = bases[0].new_zeros(CONTEXT), None
        for block in regrouped(blocks, ENCODE_WINDOWS * WINDOW):
            count = self.num_frames(len(block))
            samples = torch.cat([before, nn.functional.pad(block, (0, count * WINDOW - len(block)))])
            encoded = self._encode(samples.unfold(0, CONTEXT + WINDOW, WINDOW), bases, taps)
            states, state = self._recur(encoded, [count], state)
            yield torch.cat([encoded, states], dim=1)
            before = block[-CONTEXT:]

    def stages(self) -> list[Stage]:
        """See `Trainable`; the Fourier basis is not trained."""
        return [Stage("cnn", [self.convolutions]), Stage("layer 1", [self.rnn])]

    def adapter_targets(self) -> tuple[nn.Module, list[str]]:
        """See `Trainable`.

        Raises:
            BackboneError: it has no linear layers.
        """
        raise BackboneError(
            "silero has no attention layers for --lora; leave it out, it is small enough to train whole"
        )

    def save(self, folder: Path) -> None:
        """See `Trainable`."""
        save_checkpoint(folder, self.state_dict(), {"model_type": MODEL_TYPE, "layout": LAYOUT})

    def restore(self, folder: Path) -> None:
        """See `Trainable`."""
        self.load_state_dict(load_file(folder / WEIGHTS[0]))

    def _windows(self, waveform: Tensor, count: int) -> Tensor:
        """(samples,) → (count, CONTEXT + WINDOW): each window after the end of the previous one."""
        padded = nn.functional.pad(waveform, (CONTEXT, count * WINDOW - len(waveform)))
        return padded.unfold(0, CONTEXT + WINDOW, WINDOW)

    def _taps(self) -> list[Tensor]:
        """Return the convolutions' weights as (out, kernel x in)."""
        return [c.weight.transpose(1, 2).flatten(1) for c in cast("list[nn.Conv1d]", list(self.convolutions))]

    def _bases(self) -> tuple[Tensor, Tensor]:
        """Return the STFT's (samples, 2 * BINS) for the first three steps of a window, and for its last step.

        The package extends each window by its last 64 samples in reverse. Folding the basis gives the same product.
        """
        basis = self.stft.weight.squeeze(1).t()
        inside = STFT_SIZE - CONTEXT
        mirrored = nn.functional.pad(basis[inside:].flip(0), (0, 0, inside - CONTEXT - 1, 1))
        return basis, basis[:inside] + mirrored

    def _encode(self, windows: Tensor, bases: tuple[Tensor, Tensor], taps: Sequence[Tensor]) -> Tensor:
        """(windows, samples) → (windows, 128); see `_bases` and `_taps`."""
        basis, last_basis = bases
        last = windows[:, -len(last_basis) :] @ last_basis  # (windows, 2 * BINS)
        others = windows.unfold(1, STFT_SIZE, STFT_HOP) @ basis  # (windows, 3, 2 * BINS)
        x = torch.cat([_magnitude(others), _magnitude(last).unsqueeze(1)], dim=1)  # (windows, 4, BINS)
        for convolution, weight, stride in zip(self.convolutions, taps, STRIDES, strict=True):
            x = nn.functional.relu(_convolve(x, weight, cast(nn.Conv1d, convolution).bias, stride))
        return x.squeeze(1)

    def _recur(
        self, encoded: Tensor, lengths: Sequence[int], state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(total frames, 2 * HIDDEN): h and c of the LSTM over every clip, from a zero state if none is given.

        Also returns the last h and c of the longest clips.
        """
        rows, active = _step_major(lengths)
        rows = rows.to(encoded.device)
        inputs = nn.functional.linear(encoded, self.rnn.weight_ih, self.rnn.bias_ih + self.rnn.bias_hh)[rows]
        recurrent = self.rnn.weight_hh.t().contiguous()
        h, c = state or (encoded.new_zeros(active[0], HIDDEN),) * 2
        states = []
        for from_input in inputs.split(active):
            n = len(from_input)
            gates = torch.addmm(from_input, h[:n], recurrent)
            i, f = torch.sigmoid(gates[:, : 2 * HIDDEN]).split(HIDDEN, dim=1)
            c = torch.addcmul(f * c[:n], i, torch.tanh(gates[:, 2 * HIDDEN : 3 * HIDDEN]))
            h = torch.sigmoid(gates[:, 3 * HIDDEN :]) * torch.tanh(c)
            states += [h, c]
        back = torch.empty_like(rows)
        back[rows] = torch.arange(len(rows), device=rows.device)
        return torch.cat([torch.cat(states[::2]), torch.cat(states[1::2])], dim=1)[back], (h, c)


def _magnitude(spectrum: Tensor) -> Tensor:
    """(…, 2 * BINS) real and imaginary parts → (…, BINS)."""
    power = spectrum[..., :BINS].square() + spectrum[..., BINS:].square()
    return power.clamp_min(1e-30).sqrt()  # at zero the gradient of the root would be infinite


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve (batch, steps, channels) with kernel 3 and padding 1, as a product with (out, 3 x channels)."""
    x = nn.functional.pad(x, (0, 0, 1, 1))
    batch, steps, channels = x.shape
    size = (batch, (steps - 3) // stride + 1, 3 * channels)
    rows = x.as_strided(size, (steps * channels, stride * channels, 1), x.storage_offset()).flatten(0, 1)
    return nn.functional.linear(rows, weight, bias).view(batch, size[1], -1)


def _step_major(lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Order packed frames by time step, longest clip first.

    Returns:
        (total frames,) rows of the packed frames, and the number of clips that have a frame at each step.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    starts = torch.tensor([0, *itertools.accumulate(lengths)][:-1])[order]
    sizes = torch.tensor(lengths)[order]
    steps = torch.arange(int(sizes[0]))
    active = (sizes[None, :] > steps[:, None]).sum(1).tolist()
    return torch.cat([starts[:n] + t for t, n in enumerate(active)]), active


def load_silero(weights: Path, device: torch.device) -> SileroBackbone:
    """Build the backbone in evaluation mode.

    Args:
        weights: `silero_vad.jit` of the package, or a file that `SileroBackbone.save` wrote.
        device: where it will run.

    Raises:
        BackboneError: the weights are damaged, or of another version.
    """
    if weights.suffix == ".safetensors":
        try:
            state = load_file(weights)
        except Exception as error:  # the reader raises many types
            raise BackboneError(f"{weights} is damaged ({error}); restore it, or fine-tune again") from error
    else:
        with warnings.catch_warnings():  # TorchScript is deprecated, but the package ships nothing else
            warnings.simplefilter("ignore", DeprecationWarning)
            state = _renamed(torch.jit.load(str(weights), map_location="cpu").state_dict())
    backbone = SileroBackbone()
    backbone.load_state_dict(state)
    return backbone.eval().to(device)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"stft.weight": "_model.stft.forward_basis_buffer"}
    for i in range(len(STRIDES)):
        names |= {f"convolutions.{i}.{p}": f"_model.encoder.{i}.reparam_conv.{p}" for p in ("weight", "bias")}
    names |= {f"rnn.{p}_{g}": f"_model.decoder.rnn.{p}_{g}" for p in ("weight", "bias") for g in ("ih", "hh")}
    try:
        return {new: state[old] for new, old in names.items()}
    except KeyError as error:
        raise BackboneError(
            f"silero-vad's weights lack {error.args[0]}; this version of emi needs silero-vad 6.2, install it with "
            "`pip install 'silero-vad==6.2.3'`"
        ) from error
