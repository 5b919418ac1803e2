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
from extract.backbones.packed_encoder import PackedEncoder, supports
from extract.backbones.packed_weights import wrong_below_float32
from extract.backbones.protocol import Features
from extract.errors import BackboneError

_TASK_WEIGHTS = {
    "ForCTC": ("lm_head.",),
    "ForPreTraining": ("quantizer.", "project_q.", "project_hid."),
    "ForSequenceClassification": ("projector.", "classifier.", "layer_weights"),
    "ForXVector": ("projector.", "classifier.", "layer_weights", "feature_extractor.", "tdnn.", "objective."),
    "ForAudioFrameClassification": ("classifier.", "layer_weights"),
}
"""Weights beside the encoder that a checkpoint may hold, by the end of its architecture's name."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRAINING_ONLY = ("masked_spec_embed",)
"""Weights of SpecAugment, which some checkpoints lack (facebook/wav2vec2-base-960h)."""


class RegressionHead(nn.Module):
    """audEERING's head: dense, tanh, out_proj (dropouts have no part in inference). (…, hidden) → (…, 3)."""

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
    """Build the model in evaluation mode; the weights of the file and of the model must be the same set.

    Args:
        checkpoint: where the weights are.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".
        normalise: whether clips are brought to zero mean and unit variance.
        has_head: whether the checkpoint has audEERING's regression head.

    Raises:
        BackboneError: a weight is missing, unexpected or of another shape.
    """
    encoder = load_encoder(checkpoint, has_head=has_head)
    head = load_regression_head(checkpoint) if has_head else None
    dtype = DTYPES[precision]
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # convolutions would silently round their inputs to 10 bits
    return SpeechTransformer(encoder.eval().to(device), head, normalise, dtype).eval().to(device)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that the convolutions need for one frame: 400 for wav2vec 2.0."""
    field = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        field = (field - 1) * stride + kernel
    return field


def load_regression_head(checkpoint: Checkpoint) -> RegressionHead:
    """The head that a checkpoint holds beside its encoder.

    Raises:
        BackboneError: a weight is missing, unexpected or of another shape.
    """
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors("classifier.").items()}
    head = RegressionHead(checkpoint.config["hidden_size"], 3)
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))
        raise BackboneError(
            f"{checkpoint.folder} names arousal, dominance and valence as its labels, and its regression head does not "
            f"fit: classifier.{wrong[0][0]} is missing, unexpected or of another shape; download the checkpoint again"
        )
    head.load_state_dict(tensors)
    return head


def load_encoder(checkpoint: Checkpoint, *, has_head: bool, **config: Any) -> nn.Module:
    """The library's model.

    Args:
        checkpoint: where it is.
        has_head: whether the regression head may lie beside it.
        **config: values that replace those of its configuration.

    Raises:
        BackboneError: a weight is missing, unexpected or of another shape.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a second, and the extraction shows its own
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the regression head as "unexpected"; what matters is raised below
    try:
        encoder, report = AutoModel.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **config,
        )
    except Exception as error:  # the readers of damaged files raise many kinds
        first_line = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"{checkpoint.folder}: {checkpoint.weight_files()[0].name} or config.json cannot be loaded ({first_line}); "
            "download the checkpoint again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    allowed = _allowed_extras(checkpoint) + (("classifier.",) if has_head else ())
    extra = [key for key in report["unexpected_keys"] if not key.startswith(allowed)]
    problems = {
        "missing": [key for key in report["missing_keys"] if key not in _TRAINING_ONLY],
        "unexpected": extra,
        "misshapen": report["mismatched_keys"],
    }
    for what, keys in problems.items():
        if keys:
            raise BackboneError(
                f"{checkpoint.folder}: {len(keys)} {what} weight(s), the first {sorted(map(str, keys))[0]!r}; the "
                "checkpoint does not fit its config.json, and features from it would be wrong: download it again"
            )
    model: nn.Module = encoder
    return model


def _allowed_extras(checkpoint: Checkpoint) -> tuple[str, ...]:
    architectures = checkpoint.config.get("architectures") or []
    return tuple(
        p for end, prefixes in _TASK_WEIGHTS.items() for p in prefixes if any(a.endswith(end) for a in architectures)
    )
