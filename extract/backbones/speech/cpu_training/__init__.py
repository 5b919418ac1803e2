"""Cheaper training steps of speech transformers on a CPU. Results differ by rounding and by the dropout masks.

Each file replaces one kind of the transformers library's modules by a subclass, or the attention function. Weights,
their names, adapters and copies work as before; only a hook on a single convolution is not called. Other devices
compute as the library does.
"""

from typing import Any

from extract.backbones.speech.cpu_training.attention import use_blocks
from extract.backbones.speech.cpu_training.convolutions import use_fourier, use_rows
from extract.backbones.speech.cpu_training.dropout import use_cheap_dropout
from extract.backbones.speech.cpu_training.products import use_fast_products


def prepare_for_cpu(encoder: Any, *, checkpointing: bool) -> None:
    """Change a wav2vec 2.0, HuBERT or WavLM encoder in place.

    Args:
        encoder: of the transformers library.
        checkpointing: keep no activations of the front end, and compute them again in the backward pass.
    """
    use_blocks(encoder)
    use_cheap_dropout(encoder)
    use_fast_products(encoder)
    use_fourier(encoder)
    use_rows(encoder, checkpointing=checkpointing)
