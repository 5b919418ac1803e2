"""What autocast does to matrix products."""

import torch
from torch import Tensor


def product_type(x: Tensor) -> torch.dtype:
    """Return the type in which products of a tensor are computed here: autocast's where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
