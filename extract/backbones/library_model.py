"""Build a model of the transformers library from a checkpoint, and refuse weights that do not fit it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from extract.backbones.checkpoint import Checkpoint
from extract.errors import BackboneError


def build_model(
    checkpoint: Checkpoint,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    may_differ: Callable[[nn.Module, str], bool],
    prefix: str = "",
) -> nn.Module:
    """Build a model in float32.

    Args:
        checkpoint: for messages.
        kind: class in transformers.
        config: its configuration.
        tensors: its weights.
        may_differ: whether a weight of this name (of the model, or of the file) may be missing or unexpected.
        prefix: of the names in the file, for messages.

    Raises:
        BackboneError: the model cannot be built, or a weight is missing, unexpected or of another shape.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a second, and the extraction has its own bar
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing weights; problems are raised below
    architecture = getattr(transformers, kind)
    try:
        model, report = architecture.from_pretrained(
            None,
            config=architecture.config_class.from_dict(dict(config)),
            state_dict=dict(tensors),
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
    shapes = (f"{name} {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in report["mismatched_keys"])
    problems = {
        "missing": sorted(name for name in report["missing_keys"] if not may_differ(model, name)),
        "unexpected": sorted(name for name in report["unexpected_keys"] if not may_differ(model, name)),
        "misshapen": sorted(shapes),
    }
    for what, weights in problems.items():
        if weights:
            raise BackboneError(
                f"{checkpoint.folder}: {len(weights)} {what} weight(s) of the encoder, the first "
                f"{prefix + weights[0]!r}; the weights do not fit config.json, and features would be wrong: use the "
                "config.json that belongs to them, or download the checkpoint again"
            )
    return model


def checkpoint_layers(model: Any) -> None:
    """Let a model of the library compute the activations of its layers again in the backward pass."""
    how = {"use_reentrant": False}  # reentrant loses gradients where the first stages are frozen
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:  # older versions of transformers
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
