"""Where the detector's weights lie: in the files of the `mtcnn` wheel (MIT licence), which is not imported."""

import hashlib
import importlib.util
from pathlib import Path

from extract.errors import BackboneError

PACKAGE = "mtcnn"
SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
"""Of the files in mtcnn 1.0.0."""
WEIGHTS_SHA256 = hashlib.sha256("".join(SHA256.values()).encode()).hexdigest()
"""Of all three, in fingerprints."""


def weights_folder() -> Path:
    """Return the folder of the weight files in the installed wheel.

    Raises:
        BackboneError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        if (weights := Path(folder) / "assets" / "weights").is_dir():
            return weights
    raise BackboneError(
        "face detection reads its weights from the package mtcnn, which is not installed; "
        "run: pip install 'emi-mimicry[faces]'"
    )
