"""wav2vec 2.0, HuBERT and WavLM checkpoints of the transformers library, with audEERING's regression head.

Equal to running the library on each clip alone and unpadded. Every clip is normalised over its own samples; then

- wav2vec 2.0 and HuBERT run packed, without padding (`packed_encoder`);
- WavLM, models with adapters and what is trained run in the library: "layer" models (`feat_extract_norm`) padded with
  an attention mask, 3e-6 from single clips (measured); "group" models normalise over time and would see the padding
  even with a mask (1.2 off), so only clips of equal length share a batch.
"""

import itertools
import re
import warnings
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.checkpoint_weights import RegressionHead, load_encoder, load_regression_head
from extract.backbones.packed_weights import wrong_below_float32
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features
from extract.backbones.speech.packed_encoder import PackedEncoder, supports


class SpeechTransformer(nn.Module):
    """An encoder of the transformers library as a `Backbone`: last hidden state per 20 ms, VAD where it has a head.

    Args:
        encoder: in evaluation mode, on the device it will run on.
        head: the regression head, or None.
        normalise: whether clips are brought to zero mean and unit variance.
        dtype: of the matrix products.
        trained: whether gradients will be asked for, which only the library gives.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: RegressionHead | None,
        normalise: bool,
        dtype: torch.dtype,
        *,
        trained: bool = False,
    ) -> None:
        super().__init__()
        self.head = head
        self.normalise = normalise
        self._dtype = dtype
        self._packed = PackedEncoder(encoder, dtype) if supports(encoder.config) and not trained else None
        library: Any = encoder
        position = library.encoder.pos_conv_embed.conv
        if self.pads and wrong_below_float32(position.weight):
            _keep_in_float32(position)
        config = library.config
        self.encoder = encoder if self.pads else None  # the packed one has the weights in a layout of its own
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._receptive_field = receptive_field(config.conv_kernel, config.conv_stride)
        self._maskable = config.feat_extract_norm == "layer"

    @property
    def pads(self) -> bool:
        """Whether a batch is computed with padding, rather than packed."""
        return self._packed is None

    def num_frames(self, num_samples: int) -> int:
        """L ← (L - kernel) // stride + 1 per convolution; clips under one receptive field are padded to one frame."""
        length = max(num_samples, self._receptive_field)
        for kernel, stride in self._convolutions:
            length = (length - kernel) // stride + 1
        return length

    def forward(self, waveforms: Sequence[Tensor]) -> Features:
        """See `Backbone`."""
        lengths = [self.num_frames(len(w)) for w in waveforms]
        prepared = [self._prepare(w) for w in waveforms]
        return self._features(
            self._packed(prepared)[0] if self._packed else self._encode_padded(prepared, lengths), lengths
        )

    def _features(self, frames: Tensor, lengths: list[int]) -> Features:
        """With VAD where there is a head."""
        if self.head is None:
            return Features(frames, lengths)
        means = torch.stack([clip.mean(dim=0) for clip in frames.split(lengths)])
        return Features(frames, lengths, self.head(frames), self.head(means))

    def _prepare(self, waveform: Tensor) -> Tensor:
        """Normalise to zero mean and unit variance, as Wav2Vec2FeatureExtractor does, then pad to one frame."""
        if self.normalise:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        return functional.pad(waveform, (0, max(0, self._receptive_field - len(waveform))))

    def _encode_padded(self, waveforms: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """(total frames, dim) float32, by the library."""
        out: list[Tensor] = [torch.empty(0)] * len(waveforms)
        for group in self._groups([len(w) for w in waveforms]):
            batch = nn.utils.rnn.pad_sequence([waveforms[i] for i in group], batch_first=True)  # (clips, samples)
            hidden = self._run_library(batch, [len(waveforms[i]) for i in group])  # (clips, frames, dim)
            for row, i in enumerate(group):
                out[i] = hidden[row, : lengths[i]].float()
        return torch.cat(out)

    def _run_library(self, batch: Tensor, samples: Sequence[int]) -> Tensor:
        """(clips, frames, dim) of a padded batch, of which so many samples are valid in each clip."""
        assert self.encoder is not None
        mask = None
        if len(set(samples)) > 1:
            sizes = torch.tensor(samples, device=batch.device)
            mask = (torch.arange(max(samples), device=batch.device) < sizes[:, None]).long()
        _let_wavlm_mix_masks()
        with torch.autocast(batch.device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden: Tensor = self.encoder(batch, attention_mask=mask).last_hidden_state
        return hidden

    def _groups(self, samples: Sequence[int]) -> list[list[int]]:
        """Indices of clips that may share one padded batch."""
        if self._maskable:
            return [list(range(len(samples)))]
        order = sorted(range(len(samples)), key=lambda i: samples[i])
        return [list(group) for _, group in itertools.groupby(order, key=lambda i: samples[i])]


_MIXED_MASKS = ("ignore", re.compile("Support for mismatched key_padding_mask", re.IGNORECASE), Warning, None, 0)


def _let_wavlm_mix_masks() -> None:
    """Silence torch's word on how WavLM's attention calls it (transformers 5.23).

    For good: `warnings.catch_warnings` would put back the filters that it found while batches of other threads run.
    """
    if _MIXED_MASKS not in warnings.filters:
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")


def _keep_in_float32(module: nn.Module) -> None:
    """Take a module out of autocast; a copy of the module computes with its own weights."""
    module.forward = MethodType(_forward_in_float32, module)


def _forward_in_float32(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = type(module).forward(module, x.float())
        return result


def load_speech_transformer(
    checkpoint: Checkpoint, device: torch.device, precision: str, *, normalise: bool, has_head: bool
) -> SpeechTransformer:
    """Build the model in evaluation mode; every weight of the encoder must be in the file.

    Args:
        checkpoint: where the weights are.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".
        normalise: whether clips are brought to zero mean and unit variance.
        has_head: whether the checkpoint has a regression head (`weight_names.layout_of`).

    Raises:
        BackboneError: see `checkpoint_weights.load_encoder`.
    """
    encoder = load_encoder(checkpoint)
    head = load_regression_head(checkpoint) if has_head else None
    dtype = DTYPES[precision]
    settle_kernels(device, precision)
    return SpeechTransformer(encoder.eval().to(device), head, normalise, dtype).eval().to(device)


def settle_kernels(device: torch.device, precision: str) -> None:
    """Choose among the kernels that torch has on a GPU, for the whole process; no CPU is concerned.

    In float32, cuDNN's convolutions would round their inputs to 10 bits (TF32), which torch allows by default. cuDNN's
    attention, which torch 2.11 prefers on Hopper, builds a plan for every new number of frames, in every thread
    (`MHA.cpp`), and clips have hundreds; FlashAttention takes any.
    """
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that the convolutions need for one frame: 400 for wav2vec 2.0."""
    field = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        field = (field - 1) * stride + kernel
    return field
