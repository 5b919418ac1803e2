"""wav2vec 2.0, HuBERT and WavLM with gradients: the library's own modules, fed as in extraction."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from extract.backbones.checkpoint import CONFIGS, WEIGHTS, Checkpoint, save_checkpoint
from extract.backbones.library_model import checkpoint_layers
from extract.backbones.precision import DTYPES
from extract.backbones.protocol import Features, Regularisation, Stage
from extract.backbones.speech.cpu_training import prepare_for_cpu
from extract.backbones.speech.encoder import (
    RegressionHead,
    SpeechTransformer,
    load_encoder,
    load_regression_head,
    settle_kernels,
)
from extract.backbones.weight_names import VAD
from extract.errors import BackboneError

_DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")


class TrainableTransformer(SpeechTransformer):
    """See `Divisible`.

    Args:
        checkpoint: what it was loaded from; `save` copies its configuration.
        encoder: the library's model, float32.
        head: the regression head, or None.
        normalise: whether clips are normalised to zero mean and unit variance.
        dtype: of the matrix products.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: Any,
        head: RegressionHead | None,
        normalise: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(encoder, head, normalise, dtype, trained=True)
        self._checkpoint = checkpoint
        self._masks = bool(encoder.config.apply_spec_augment)

    def _run_library(self, batch: Tensor, samples: Sequence[int]) -> Tensor:
        """Run as in extraction. Batches shorter than a span of SpecAugment are not masked."""
        frames = self.num_frames(max(samples))
        self.encoder.config.apply_spec_augment = self._masks and frames > self.encoder.config.mask_time_length
        return super()._run_library(batch, samples)

    def stages(self) -> list[Stage]:
        """See `Trainable`. Where only clips of equal length share a batch, layers are called once per length."""
        inner, stable = self.encoder.encoder, self.encoder.config.do_stable_layer_norm
        first: list[nn.Module] = [self.encoder.feature_projection, inner.pos_conv_embed, inner.dropout]
        last = [*([inner.layer_norm] if stable else []), *([self.head] if self.head is not None else [])]
        return [
            Stage("cnn", [self.encoder.feature_extractor], called_once=self._maskable),
            Stage("projection", first if stable else [*first, inner.layer_norm]),
            *(Stage(f"layer {i}", [layer], called_once=self._maskable) for i, layer in enumerate(inner.layers, 1)),
            *([Stage("output", last)] if last else []),
        ]

    def remembers(self, stages: int) -> int:
        """See `Divisible`. WavLM's layers share values of the first layer, so only its convolutions can be cached."""
        if self.encoder.config.model_type == "wavlm" or (self._masks and stages > 1):
            return min(stages, 1)
        return min(stages, len(self.stages()) - 1)

    def below(self, waveforms: Sequence[Tensor], stages: int) -> list[Tensor]:
        """See `Divisible`."""
        from transformers.modeling_outputs import BaseModelOutput

        prepared = [self._prepare(w) for w in waveforms]
        lengths = [self.num_frames(len(w)) for w in waveforms]
        library, inner = self.encoder, self.encoder.encoder
        replaced: Any = {"feature_projection": _Instead(self._as_projected), "encoder": _Instead(BaseModelOutput)}
        if stages > 1:
            replaced = {"layers": inner.layers[: stages - 2]}
            replaced |= {"layer_norm": nn.Identity()} if library.config.do_stable_layer_norm else {}
        with _evaluating(self), _replaced(inner if stages > 1 else library, **replaced):
            return list(self._encode_padded(prepared, [len(w) for w in prepared], lengths).split(lengths))

    def above(self, frames: Sequence[Tensor], samples: Sequence[int], stages: int) -> Features:
        """See `Divisible`."""
        inner = self.encoder.encoder
        lengths = [self.num_frames(n) for n in samples]
        needed = [max(n, self._receptive_field) for n in samples]
        # the convolutions' output is given; so are, above stage 1, the projection's and the positions
        outer: dict[str, nn.Module] = {"feature_extractor": _Instead(lambda frames: frames.transpose(1, 2))}
        within: dict[str, nn.Module] = {}
        if stages > 1:
            outer["feature_projection"] = _Instead(self._as_projected)
            within = {"pos_conv_embed": _Instead(torch.zeros_like), "layers": inner.layers[stages - 2 :]}
            within |= {} if self.encoder.config.do_stable_layer_norm else {"layer_norm": nn.Identity()}
        with _replaced(self.encoder, **outer), _replaced(inner, **within):
            return self._features(self._encode_padded(frames, needed, lengths), lengths)

    def _as_projected(self, frames: Tensor) -> Any:
        """Return frames in the form in which the library's projection returns them."""
        return frames if self.encoder.config.model_type == "hubert" else (frames, frames)

    def adapter_targets(self) -> tuple[nn.Module, list[str]]:
        """See `Trainable`: query and value, as in the LoRA paper (Hu et al. 2021, section 4.2)."""
        if self.encoder.config.model_type == "wavlm":
            raise BackboneError(
                "WavLM's attention reads the weights of its projections directly, so --lora would train nothing; "
                "leave it out, and freeze the layers that should not be trained"
            )
        return self.encoder, ["q_proj", "v_proj"]

    def save(self, folder: Path) -> None:
        """See `Trainable`. The regression head is stored as `classifier.`, as in audEERING's checkpoint."""
        tensors = dict(self.encoder.state_dict())
        config = {k: v for k, v in self._checkpoint.config.items() if k != "torch_dtype"} | {"dtype": "float32"}
        if self.head is not None:
            tensors |= {f"classifier.{name}": tensor for name, tensor in self.head.state_dict().items()}
            config |= {
                "id2label": dict(zip("012", VAD, strict=True)),
                "label2id": dict(zip(VAD, range(3), strict=True)),
            }
        for name in CONFIGS[1:]:
            if (self._checkpoint.folder / name).is_file():
                shutil.copyfile(self._checkpoint.folder / name, folder / name)
        save_checkpoint(folder, tensors, config)

    def restore(self, folder: Path) -> None:
        """See `Trainable`."""
        tensors = load_file(folder / WEIGHTS[0])
        if self.head is not None:
            self.head.load_state_dict({name: tensors.pop(f"classifier.{name}") for name in self.head.state_dict()})
        self.encoder.load_state_dict(tensors)


class _Instead(nn.Module):
    """Replaces a module of the library by a function of its first input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, frames: Tensor, **_: Any) -> Any:
        return self._function(frames)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode for a while; then restore the mode of each part."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


@contextlib.contextmanager
def _replaced(parent: Any, **children: nn.Module) -> Iterator[None]:
    """Replace modules of a model for a while."""
    before = {name: getattr(parent, name) for name in children}
    for name, child in children.items():
        setattr(parent, name, child)
    try:
        yield
    finally:
        for name, child in before.items():
            setattr(parent, name, child)


def load_trainable_transformer(
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str,
    regularisation: Regularisation,
    *,
    normalise: bool,
    has_head: bool,
) -> TrainableTransformer:
    """Build the model in evaluation mode.

    Args:
        checkpoint: where the weights are.
        device: where it will run.
        precision: of the matrix products: "fp32", "bf16" or "fp16".
        regularisation: what training mode changes.
        normalise: whether clips are normalised to zero mean and unit variance.
        has_head: whether the checkpoint has a regression head (`weight_names.layout_of`).

    Raises:
        BackboneError: a weight is missing, unexpected or of another shape.
    """
    changed: dict[str, Any] = {
        "layerdrop": regularisation.layerdrop,
        "apply_spec_augment": regularisation.spec_augment,
    }
    if regularisation.dropout is not None:
        changed |= dict.fromkeys(_DROPOUTS, regularisation.dropout)
    settle_kernels(device, precision)
    encoder: Any = load_encoder(checkpoint, **changed)
    if regularisation.checkpointing:
        checkpoint_layers(encoder)
    prepare_for_cpu(encoder, checkpointing=regularisation.checkpointing)
    head = load_regression_head(checkpoint) if has_head else None
    return TrainableTransformer(checkpoint, encoder, head, normalise, DTYPES[precision]).eval().to(device)
