"""wav2vec 2.0, HuBERT and WavLM checkpoints of the transformers library, with audEERING's regression head.

Equal to running the library on each clip alone and unpadded:

- every clip is normalised over its own samples before padding;
- "layer" models (`feat_extract_norm`) run padded with an attention mask: 3e-6 from single clips, measured;
- "group" models normalise over time and would see the padding even with a mask (1.2 off): equal lengths only.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from extract.backbones.checkpoint import Checkpoint, find_checkpoint
from extract.backbones.protocol import Features, Identity
from extract.errors import BackboneError

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm")
VAD_NAMES = frozenset({"arousal", "dominance", "valence"})
_TASK_WEIGHTS = {
    "ForCTC": ("lm_head.",),
    "ForPreTraining": ("quantizer.", "project_q.", "project_hid."),
    "ForSequenceClassification": ("projector.", "classifier.", "layer_weights"),
    "ForXVector": ("projector.", "classifier.", "layer_weights", "feature_extractor.", "tdnn.", "objective."),
    "ForAudioFrameClassification": ("classifier.", "layer_weights"),
}
"""Weights beside the encoder that a checkpoint may hold, by the end of its architecture's name."""


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
    """An encoder of the transformers library as a `Backbone`: last hidden state per 20 ms, VAD where it has a head."""

    def __init__(self, encoder: nn.Module, head: RegressionHead | None, normalise: bool, autocast: torch.dtype | None):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.normalise = normalise
        self._autocast = autocast
        config: Any = encoder.config
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._receptive_field = receptive_field(config.conv_kernel, config.conv_stride)
        self._maskable = config.feat_extract_norm == "layer"

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
        frames = torch.cat(self._encode(prepared, lengths))  # (total frames, dim)
        if self.head is None:
            return Features(frames, lengths)
        means = torch.stack([clip.mean(dim=0) for clip in frames.split(lengths)])
        return Features(frames, lengths, self.head(frames), self.head(means))

    def _prepare(self, waveform: Tensor) -> Tensor:
        """Normalise to zero mean and unit variance, as Wav2Vec2FeatureExtractor does, then pad to one frame."""
        if self.normalise:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        return functional.pad(waveform, (0, max(0, self._receptive_field - len(waveform))))

    def _encode(self, waveforms: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """(frames, dim) float32 of each clip."""
        out: list[Tensor] = [torch.empty(0)] * len(waveforms)
        for group in self._groups(waveforms):
            sizes = torch.tensor([len(waveforms[i]) for i in group], device=waveforms[0].device)
            batch = nn.utils.rnn.pad_sequence([waveforms[i] for i in group], batch_first=True)  # (clips, samples)
            mask = None
            if bool((sizes != batch.shape[1]).any()):
                mask = (torch.arange(batch.shape[1], device=batch.device) < sizes[:, None]).long()
            with torch.autocast(batch.device.type, self._autocast, enabled=self._autocast is not None):
                hidden = self.encoder(batch, attention_mask=mask).last_hidden_state  # (clips, frames, dim)
            for row, i in enumerate(group):
                out[i] = hidden[row, : lengths[i]].float()
        return out

    def _groups(self, waveforms: Sequence[Tensor]) -> list[list[int]]:
        """Indices that may share one padded batch."""
        if self._maskable:
            return [list(range(len(waveforms)))]
        order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
        return [list(group) for _, group in itertools.groupby(order, key=lambda i: len(waveforms[i]))]


class TransformersFamily:
    """See `Family`."""

    def identify(self, name: str) -> Identity:
        """Read the configuration and hash the weights."""
        checkpoint = find_checkpoint(name)
        config = checkpoint.config
        _check_supported(checkpoint)
        return Identity(
            source=name,
            fingerprint={
                "backbone": _display_name(name),
                "weights_sha256": checkpoint.weights_sha256(),
                "config_sha256": checkpoint.config_sha256(),
                "layer": "last",
                "normalisation": "clip-mean-variance" if _normalises(checkpoint) else "none",
            },
            dim=config.get("hidden_size", 768),
            hop_seconds=math.prod(config.get("conv_stride", _DEFAULT_STRIDES)) / 16_000,
            vad_names=_vad_names(checkpoint),
        )

    def load(self, identity: Identity, device: torch.device, precision: str) -> SpeechTransformer:
        """Build the model; every weight of the file must be used and every weight of the model be in the file."""
        checkpoint = find_checkpoint(identity.source)
        head = _load_head(checkpoint) if identity.vad_names else None
        encoder = _load_encoder(checkpoint, has_head=head is not None)
        autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # convolutions would silently round their inputs to 10 bits
        return SpeechTransformer(encoder, head, _normalises(checkpoint), autocast).eval().to(device)


TRANSFORMERS = TransformersFamily()
_DEFAULT_STRIDES = (5, 2, 2, 2, 2, 2, 2)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that the convolutions need for one frame: 400 for wav2vec 2.0."""
    field = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        field = (field - 1) * stride + kernel
    return field


def _display_name(name: str) -> str:
    """A hub id as it is; a folder by its own name, so that moving it changes nothing."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def _check_supported(checkpoint: Checkpoint) -> None:
    kind = checkpoint.config.get("model_type")
    if kind not in MODEL_TYPES:
        raise BackboneError(
            f"{checkpoint.folder} is a {kind!r} model, and emi runs {', '.join(MODEL_TYPES)}; choose one of those, or "
            "--backbone silero"
        )
    rate = checkpoint.preprocessor.get("sampling_rate", 16_000)
    if rate != 16_000:
        raise BackboneError(f"{checkpoint.folder} expects {rate} Hz audio, and emi decodes to 16000 Hz")


def _normalises(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.preprocessor.get("do_normalize", True))


def _vad_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The head's outputs in the checkpoint's order, where they are arousal, dominance and valence."""
    labels = checkpoint.config.get("id2label") or {}
    names = tuple(str(labels[key]).lower() for key in sorted(labels, key=int))
    return names if len(names) == 3 and set(names) == VAD_NAMES else ()


def _load_head(checkpoint: Checkpoint) -> RegressionHead:
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


def _load_encoder(checkpoint: Checkpoint, *, has_head: bool) -> nn.Module:
    from transformers import AutoModel

    encoder, report = AutoModel.from_pretrained(
        checkpoint.folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    allowed = _allowed_extras(checkpoint) + (("classifier.",) if has_head else ())
    extra = [key for key in report["unexpected_keys"] if not key.startswith(allowed)]
    problems = {
        "missing": report["missing_keys"],
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
