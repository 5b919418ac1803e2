"""wav2vec 2.0, HuBERT and WavLM checkpoints of the transformers library, with audEERING's regression head.

Equal to running the library on each clip alone and unpadded. Every clip is normalised over its own samples; then

- wav2vec 2.0 and HuBERT run packed, without padding (`packed_encoder`);
- WavLM, models with adapters, and all models in training run in the library. "layer" models (`feat_extract_norm`) are
  padded with an attention mask, which differs from single clips by 3e-6 (measured). "group" models normalise over time
  and would see the padding even with a mask (a difference of 1.2), so only clips of equal length share a batch.
"""

import itertools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extract.backbones.checkpoint import Checkpoint
from extract.backbones.library_model import build_model
from extract.backbones.packed_weights import keep_in_float32, wrong_below_float32
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features
from extract.backbones.speech.front_end import num_frames, num_samples
from extract.backbones.speech.packed_encoder import PackedEncoder, supports
from extract.backbones.weight_names import VAD
from extract.errors import BackboneError

_ENCODERS = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
# Weights of SpecAugment, which some checkpoints lack (facebook/wav2vec2-base-960h).
_TRAINING_ONLY = frozenset({"masked_spec_embed"})
_POSITION = "encoder.pos_conv_embed.conv."


class RegressionHead(nn.Module):
    """audEERING's head: dense, tanh, out_proj, without dropout. (…, hidden) → (…, 3)."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Apply to frames or to their time mean; the two differ because of the tanh."""
        return self.out_proj(torch.tanh(self.dense(features)))


class SpeechTransformer(nn.Module):
    """An encoder of the transformers library as a `Backbone`: last hidden state per 20 ms, VAD where it has a head.

    Args:
        encoder: in evaluation mode, on the device it will run on.
        head: the regression head, or None.
        normalise: whether clips are normalised to zero mean and unit variance.
        dtype: of the matrix products.
        trained: whether gradients are needed, which only the library computes.
    """

    def __init__(
        self,
        encoder: Any,
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
        self.pads = trained or not supports(encoder.config)
        self._packed = None if self.pads else PackedEncoder(encoder, dtype)
        position, config = encoder.encoder.pos_conv_embed.conv, encoder.config
        if self.pads and wrong_below_float32(position.weight):
            keep_in_float32(position)
        self.encoder: Any = encoder if self.pads else None  # the packed encoder has its own layout of the weights
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._receptive_field = num_samples(1, self._convolutions)  # 400 for wav2vec 2.0
        self._maskable = config.feat_extract_norm == "layer"

    def num_frames(self, samples: int) -> int:
        """Clips under one receptive field are padded to one frame."""
        return num_frames(max(samples, self._receptive_field), self._convolutions)

    def forward(self, waveforms: Sequence[Tensor]) -> Features:
        """See `Backbone`."""
        lengths = [self.num_frames(len(w)) for w in waveforms]
        prepared = [self._prepare(w) for w in waveforms]
        if self._packed:
            return self._features(self._packed(prepared)[0], lengths)
        return self._features(self._encode_padded(prepared, [len(w) for w in prepared], lengths), lengths)

    def _features(self, frames: Tensor, lengths: list[int]) -> Features:
        """Add valence, arousal and dominance where there is a head."""
        if self.head is None:
            return Features(frames, lengths)
        means = torch.stack([clip.mean(dim=0) for clip in frames.split(lengths)])
        return Features(frames, lengths, self.head(frames), self.head(means))

    def _prepare(self, waveform: Tensor) -> Tensor:
        """Normalise to zero mean and unit variance, as Wav2Vec2FeatureExtractor does, then pad to one frame."""
        if self.normalise:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        return nn.functional.pad(waveform, (0, max(0, self._receptive_field - len(waveform))))

    def _encode_padded(self, inputs: Sequence[Tensor], samples: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Run the library over waveforms of these numbers of samples; return (total frames, dim) float32."""
        out: list[Tensor] = [torch.empty(0)] * len(inputs)
        sizes = [0 if self._maskable else n for n in samples]  # clips of one size may share a padded batch
        order = sorted(range(len(samples)), key=sizes.__getitem__)
        for _, clips in itertools.groupby(order, key=sizes.__getitem__):
            group = list(clips)
            batch = nn.utils.rnn.pad_sequence([inputs[i] for i in group], batch_first=True)  # (clips, samples)
            hidden = self._run_library(batch, [samples[i] for i in group])  # (clips, frames, dim)
            for row, i in enumerate(group):
                out[i] = hidden[row, : lengths[i]].float()
        return torch.cat(out)

    def _run_library(self, batch: Tensor, samples: Sequence[int]) -> Tensor:
        """Return (clips, frames, dim) of a padded batch; `samples` are the valid samples of each clip."""
        mask = None
        if len(set(samples)) > 1:
            sizes = torch.tensor(samples, device=batch.device)
            mask = (torch.arange(max(samples), device=batch.device) < sizes[:, None]).long()
        if _MIXED_MASKS not in warnings.filters:
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
        with torch.autocast(batch.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self.encoder(batch, attention_mask=mask).last_hidden_state


# Torch's warning about how WavLM's attention calls it (transformers 5.23), silenced for the whole process:
# `warnings.catch_warnings` would restore filters while other threads run batches.
_MIXED_MASKS = ("ignore", re.compile("Support for mismatched key_padding_mask", re.IGNORECASE), Warning, None, 0)


def load_speech_transformer(
    checkpoint: Checkpoint, device: torch.device, precision: str, *, normalise: bool, has_head: bool
) -> SpeechTransformer:
    """Build the model in evaluation mode; every weight of the encoder must be in the file.

    Args:
        checkpoint: where the weights are.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".
        normalise: whether clips are normalised to zero mean and unit variance.
        has_head: whether the checkpoint has a regression head (`weight_names.layout_of`).

    Raises:
        BackboneError: see `load_encoder`.
    """
    encoder = load_encoder(checkpoint)
    head = load_regression_head(checkpoint) if has_head else None
    settle_kernels(device, precision)
    return SpeechTransformer(encoder.eval().to(device), head, normalise, DTYPES[precision]).eval().to(device)


def settle_kernels(device: torch.device, precision: str) -> None:
    """Choose the GPU kernels of torch, for the whole process. CPUs are not affected.

    In float32, cuDNN's convolutions would round their inputs to 10 bits (TF32), which torch allows by default. cuDNN's
    attention, which torch 2.11 prefers on Hopper, builds a plan for every new number of frames in every thread
    (`MHA.cpp`), and clips have hundreds of lengths. FlashAttention needs no plans.
    """
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def load_regression_head(checkpoint: Checkpoint) -> RegressionHead:
    """Load the regression head of a checkpoint, with its outputs in the order of `weight_names.VAD`.

    Raises:
        BackboneError: a weight is missing, unexpected or of another shape.
    """
    layout = checkpoint.layout()
    stored = checkpoint.tensors(
        lambda name: name.startswith((f"{layout.head}dense.", f"{layout.head}{layout.output}."))
    )
    tensors = {name.removeprefix(layout.head or ""): tensor.float() for name, tensor in stored.items()}
    head = RegressionHead(checkpoint.config.get("hidden_size", 768), len(VAD))
    expected = {
        name.replace("out_proj", layout.output): tuple(tensor.shape) for name, tensor in head.state_dict().items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))
        raise BackboneError(
            f"{checkpoint.folder} names arousal, dominance and valence as its labels, and its regression head does not "
            f"fit: {layout.head}{wrong[0][0]} is missing, unexpected or of another shape; download the checkpoint again"
        )
    rows = list(layout.order)
    for name in ("weight", "bias"):
        tensors[f"out_proj.{name}"] = tensors.pop(f"{layout.output}.{name}")[rows]
    head.load_state_dict(tensors)
    return head


def load_encoder(checkpoint: Checkpoint, **config: Any) -> nn.Module:
    """Build the library's model in float32.

    Args:
        checkpoint: with its weights.
        **config: values that replace those of its configuration.

    Raises:
        BackboneError: its files cannot be read, or a weight of the encoder is missing, unexpected or of another shape.
    """
    layout = checkpoint.layout()
    stored = checkpoint.tensors(layout.in_encoder)
    tensors = {name.removeprefix(layout.prefix): tensor for name, tensor in stored.items()}
    if not checkpoint.config.get("conv_pos_batch_norm"):
        tensors = _with_normed_position(tensors)
    return build_model(
        checkpoint,
        _ENCODERS[checkpoint.config["model_type"]],
        {**checkpoint.config, **config},
        tensors,
        may_differ=lambda _, name: name in _TRAINING_ONLY,
        prefix=layout.prefix,
    )


def _with_normed_position(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the positional convolution into length and direction, where their product was saved."""
    weight = tensors.get(f"{_POSITION}weight")
    if weight is None or any(name.startswith(f"{_POSITION}parametrizations.") for name in tensors):
        return tensors
    parts = {
        f"{_POSITION}parametrizations.weight.original0": weight.float().norm(dim=(0, 1), keepdim=True),
        f"{_POSITION}parametrizations.weight.original1": weight,
    }
    return {name: tensor for name, tensor in tensors.items() if name != f"{_POSITION}weight"} | parts
