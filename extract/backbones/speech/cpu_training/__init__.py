"""What makes a training step of a speech transformer cheaper on a CPU; results differ by rounding and what is drawn.

Each file puts a subclass in the place of one kind of the transformers library's modules, or its own function in that of
attention. Weights, their names, adapters and copies stay as they are; a hook on a single convolution would not be
called. Other devices compute as the library.
"""

from typing import Any

from extract.backbones.speech.cpu_training.attention import use_blocks
from extract.backbones.speech.cpu_training.dropout import use_cheap_dropout
from extract.backbones.speech.cpu_training.front_end import use_rows
from extract.backbones.speech.cpu_training.positions import use_fourier
from extract.backbones.speech.cpu_training.products import use_fast_products


def prepare_for_cpu(encoder: Any, *, checkpointing: bool) -> None:
    """Change a wav2vec 2.0, HuBERT or WavLM encoder in place.

    Args:
        encoder: of the transformers library.
        checkpointing: keep nothing between the waveform and the frames, and compute it again for the way back.
    """
    use_blocks(encoder)
    use_cheap_dropout(encoder)
    use_fast_products(encoder)
    use_fourier(encoder)
    use_rows(encoder, checkpointing=checkpointing)
