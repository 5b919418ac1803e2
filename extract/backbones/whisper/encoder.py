"""Whisper's encoder at the true length of each clip: a state per 20 ms, without the 30 s of padding of recognition.

Equal to the layers of the transformers library on each clip alone and unpadded. A batch is computed packed: linear
layers see the rows of all clips one behind the other, attention sees one clip at a time. A clip longer than the
positions that the model knows (30 s) is encoded in pieces of that length, each as a clip of its own, spectra included.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from extract.backbones.blocks import regrouped
from extract.backbones.checkpoint import Checkpoint
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features
from extract.errors import BackboneError

FFT, HOP = 400, 160
"""Samples of a spectrum at 16 kHz, and from one to the next."""
STRIDE = 2
"""Spectra per state: the second convolution's."""


class Attention(nn.Module):
    """Self-attention within each clip; names of weights as in the checkpoint."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.k_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """(total rows, dim) of clips with these lengths → the same shape."""
        parts = [
            projected.unflatten(-1, (self.heads, -1)).transpose(0, 1).split(list(lengths), dim=1)
            for projected in (self.q_proj(rows), self.k_proj(rows), self.v_proj(rows))
        ]  # (heads, rows of a clip, size of a head) each
        seen = [functional.scaled_dot_product_attention(q, k, v) for q, k, v in zip(*parts, strict=True)]
        out: Tensor = self.out_proj(torch.cat(seen, dim=1).transpose(0, 1).flatten(1))
        return out


class Layer(nn.Module):
    """A pre-norm transformer layer; names of weights as in the checkpoint."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """(total rows, dim) → the same shape."""
        rows = rows + self.self_attn(self.self_attn_layer_norm(rows), lengths)
        out: Tensor = rows + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(rows))))
        return out


class WhisperBackbone(nn.Module):
    """See `extract.backbones.protocol.Blockwise`.

    Args:
        config: of the checkpoint.
        layer: number of the layer whose output is taken, 0 for what enters the first; None for the last, normalised.
        dtype: of the matrix products.
    """

    pads = False
    mel: Tensor
    window: Tensor

    def __init__(self, config: dict[str, Any], layer: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        dim, positions = config["d_model"], config["max_source_positions"]
        self._piece = positions * STRIDE * HOP  # samples of the longest piece
        self.conv1 = nn.Conv1d(config["num_mel_bins"], dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=STRIDE, padding=1)
        self.embed_positions = nn.Embedding(positions, dim)
        self.layers = nn.ModuleList(
            Layer(dim, config["encoder_attention_heads"], config["encoder_ffn_dim"])
            for _ in range(config["encoder_layers"] if layer is None else layer)
        )
        self.layer_norm = nn.LayerNorm(dim) if layer is None else nn.Identity()
        self._dtype = dtype
        self.register_buffer("mel", torch.from_numpy(mel_filters(config["num_mel_bins"])), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def num_frames(self, num_samples: int) -> int:
        """Return the number of states; clips under one spectrum are padded to one."""
        return sum(-(-(max(samples, FFT) // HOP) // STRIDE) for samples in self._pieces(num_samples))

    def forward(self, waveforms: Sequence[Tensor]) -> Features:
        """See `Backbone`."""
        spectra = [self.log_mel(piece) for w in waveforms for piece in self._cut(w)]  # in float32: silence is 1e-10
        with torch.autocast(self.conv1.weight.device.type, self._dtype, enabled=self._dtype != torch.float32):
            clips = [self._embed(piece) for piece in spectra]
            rows, lengths = torch.cat(clips), [len(clip) for clip in clips]
            for layer in self.layers:
                rows = layer(rows, lengths)
            rows = self.layer_norm(rows)
        return Features(rows.float(), [self.num_frames(len(w)) for w in waveforms])

    def in_blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `Blockwise`."""
        for number, piece in enumerate(regrouped(blocks, self._piece)):
            if number == 0 or len(piece) >= HOP:
                yield self([piece]).frames

    def _cut(self, waveform: Tensor) -> Sequence[Tensor]:
        sizes = self._pieces(len(waveform))
        return waveform[: sum(sizes)].split(sizes)

    def _pieces(self, num_samples: int) -> list[int]:
        """Return the samples of each piece of a clip; a rest without a spectrum of its own is left out."""
        whole, rest = divmod(num_samples, self._piece)
        return [self._piece] * whole + ([rest] if rest >= HOP or not whole else [])

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(samples,) → (mel bins, spectra): log10 of mel power, within 8 of the loudest, scaled as in the library."""
        samples = functional.pad(waveform, (0, max(0, FFT - len(waveform))))
        spectrum = torch.stft(samples, FFT, HOP, window=self.window, center=True, return_complex=True)
        power = spectrum[:, : len(samples) // HOP].abs().square()
        log = (self.mel @ power).clamp(min=1e-10).log10()
        return (log.maximum(log.max() - 8.0) + 4.0) / 4.0

    def _embed(self, spectra: Tensor) -> Tensor:
        """(mel bins, spectra) → (states, dim) with their positions."""
        states = functional.gelu(self.conv2(functional.gelu(self.conv1(spectra[None]))))[0].T
        return states.float() + self.embed_positions.weight[: len(states)]


def mel_filters(bins: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(mel bins, frequencies) float32 triangles of equal area on Slaney's scale, as the library's feature extractor."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(FFT // 2 + 1, bins, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    return np.ascontiguousarray(filters.T, np.float32)


def load_whisper(checkpoint: Checkpoint, layer: int | None, device: torch.device, precision: str) -> WhisperBackbone:
    """Build the encoder in evaluation mode; every weight that it needs must be in the file.

    Args:
        checkpoint: of any Whisper model; its decoder is not read.
        layer: as for `WhisperBackbone`.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".

    Raises:
        BackboneError: a weight is missing or of another shape.
    """
    backbone = WhisperBackbone(dict(checkpoint.config), layer, DTYPES[precision])
    stored = checkpoint.tensors(lambda name: "encoder." in name and "decoder." not in name)
    tensors = {name.partition("encoder.")[2]: tensor.float() for name, tensor in stored.items()}
    for name, wanted in backbone.state_dict().items():
        found = tensors.get(name)
        if found is None or found.shape != wanted.shape:
            what = "is missing" if found is None else f"is {tuple(found.shape)} for {tuple(wanted.shape)}"
            raise BackboneError(
                f"{checkpoint.folder}: the weight encoder.{name} {what}; the weights do not fit config.json: use the "
                "config.json that belongs to them, or download the checkpoint again"
            )
    backbone.load_state_dict({name: tensors[name] for name in backbone.state_dict()})
    return backbone.eval().to(device)
