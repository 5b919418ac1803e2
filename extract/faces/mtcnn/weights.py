"""Read MTCNN's weights from the files of the `mtcnn` wheel (MIT licence), without importing it or unpickling anything.

A file is an LZ4 frame around a joblib pickle of float32 arrays. Its SHA-256 is pinned, so its content is known: the
arrays lie in the order of the networks' parameters, each behind a header that ends in the same bytes.
"""

import hashlib
import importlib.util
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from extract.errors import BackboneError

PACKAGE = "mtcnn"
SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
"""Of the files in mtcnn 1.0.0."""
# Where joblib's header of an array ends: 16 bytes of alignment, BUILD. The padding's length, the padding, the numbers.
_HEADER_END = b"K\x10ub"


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


def read_arrays(network: str, shapes: Iterable[tuple[int, ...]]) -> Iterator[Tensor]:
    """Yield the arrays of a network's file as float32 tensors, in the layout of TensorFlow.

    Args:
        network: key in `SHA256`.
        shapes: of the arrays in the file, in order.

    Raises:
        BackboneError: the wheel is not installed, or the file is not that of mtcnn 1.0.0.
    """
    path = weights_folder() / f"{network}.lz4"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BackboneError(
            f"{path}: cannot be read ({error.strerror}); run: pip install --force-reinstall mtcnn==1.0.0"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256[network]:
        raise BackboneError(
            f"{path}: not the weights of mtcnn 1.0.0 (SHA-256 differs); run: pip install --force-reinstall mtcnn==1.0.0"
        )
    import lz4.frame  # a dependency of mtcnn

    pickled, at = lz4.frame.decompress(content), 0
    for shape in shapes:
        at = pickled.index(_HEADER_END, at) + len(_HEADER_END)
        at += 1 + pickled[at]
        array = np.frombuffer(pickled, "<f4", math.prod(shape), at).reshape(shape)
        at += array.nbytes
        yield torch.from_numpy(array.astype(np.float32))
