"""Load the weights of a wav2vec 2.0, HuBERT or WavLM checkpoint: its encoder, and a regression head.

The encoder is built from config.json. All of its weights must be in the file, by name and shape. Other weights in the
file, and the class that saved it, do not matter.
"""

from typing import Any

import torch
from torch import Tensor, nn

from extract.backbones.checkpoint import Checkpoint
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
    import transformers
    from transformers.utils import logging

    layout = checkpoint.layout()
    stored = checkpoint.tensors(layout.in_encoder)
    tensors = {name.removeprefix(layout.prefix): tensor for name, tensor in stored.items()}
    if not checkpoint.config.get("conv_pos_batch_norm"):
        tensors = _with_normed_position(tensors)
    logging.disable_progress_bar()  # loading takes a second, and the extraction has its own bar
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing weights; problems are raised below
    kind = getattr(transformers, _ENCODERS[checkpoint.config["model_type"]])
    try:
        settings = kind.config_class.from_dict({**checkpoint.config, **config})
        encoder, report = kind.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except MemoryError:
        raise
    except Exception as error:  # a model that cannot be built raises many types
        first_line = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"{checkpoint.folder}: transformers {transformers.__version__} cannot build the model of its config.json "
            f"({type(error).__name__}: {first_line})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    _refuse_problems(checkpoint, layout.prefix, report)
    return encoder


def _refuse_problems(checkpoint: Checkpoint, prefix: str, report: dict[str, Any]) -> None:
    shapes = (f"{name} {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in report["mismatched_keys"])
    problems = {
        "missing": sorted(set(report["missing_keys"]) - _TRAINING_ONLY),
        "unexpected": sorted(report["unexpected_keys"]),
        "misshapen": sorted(shapes),
    }
    for what, weights in problems.items():
        if weights:
            raise BackboneError(
                f"{checkpoint.folder}: {len(weights)} {what} weight(s) of the encoder, the first "
                f"{prefix + weights[0]!r}; the weights do not fit config.json, and features would be wrong: use the "
                "config.json that belongs to them, or download the checkpoint again"
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
