"""Describe the silero backbone without importing torch."""

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from extract.backbones.protocol import Identity
from extract.errors import BackboneError

if TYPE_CHECKING:
    import torch

    from extract.backbones.silero import SileroBackbone

WINDOW = 512
"""Samples per frame at 16 kHz: 32 ms."""
CONTEXT = 64
"""Samples of the previous window that precede each window; zeros before the first."""
STFT_SIZE, STFT_HOP, BINS = 256, 128, 129
CHANNELS = (BINS, 128, 64, 64, 128)
STRIDES = (1, 2, 2, 1)
HIDDEN = 128
DIM = CHANNELS[-1] + 2 * HIDDEN
"""Convolution output 128, then the LSTM's h 128 and c 128."""


class SileroFamily:
    """See `Family`."""

    def identify(self, name: str) -> Identity:
        """Hash the wheel's weights."""
        layout = (
            f"window {WINDOW} context {CONTEXT} stft {STFT_SIZE}/{STFT_HOP} conv {CHANNELS}/{STRIDES} lstm {HIDDEN}"
        )
        return Identity(
            source=name,
            fingerprint={
                "backbone": name,
                "weights_sha256": hashlib.sha256(weights_file().read_bytes()).hexdigest(),
                "config_sha256": hashlib.sha256(layout.encode()).hexdigest(),
                "layer": "conv+h+c",
                "normalisation": "none",
            },
            dim=DIM,
            hop_seconds=WINDOW / 16_000,
            precisions=("fp32",),
            small=True,
        )

    def load(self, identity: Identity, device: "torch.device", precision: str) -> "SileroBackbone":  # noqa: ARG002
        """Build the module; it always computes in float32, which is fast enough everywhere."""
        from extract.backbones.silero import load_silero

        return load_silero(device)


SILERO = SileroFamily()


def weights_file() -> Path:
    """The weights inside the installed silero-vad package, found without importing it.

    Importing silero_vad calls `torch.set_num_threads(1)` for the whole process.
    """
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "the silero backbone needs the package silero-vad; install it with `pip install silero-vad`"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit"
