"""Read MTCNN's weights from the files of the `mtcnn` wheel (MIT licence), without importing it or unpickling anything.

A file is an LZ4 frame around a joblib pickle of float32 arrays. Its SHA-256 is pinned, so its content is known: the
arrays lie in the order of the networks' parameters, each behind a header that ends in the same bytes.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from extract.errors import BackboneError
from extract.faces.package import SHA256, weights_folder

# Where joblib's header of an array ends: 16 bytes of alignment, BUILD. The padding's length, the padding, the numbers.
_HEADER_END = b"K\x10ub"


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
