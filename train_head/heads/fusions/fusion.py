"""What a fusion is."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn


class Fusion(nn.Module):
    """Maps a vector per stream to one value per target.

    Args:
        widths: size of each stream's vector, by the stream's name.
        targets: values that are predicted.
        options: an instance of `Options`.
    """

    Options: ClassVar[Any]

    def __init__(self, widths: Mapping[str, int], targets: int, options: Any) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Fuse.

        Args:
            vectors: (..., width) of every stream, with equal leading sizes: (batch,) for clips, (batch, rows) for rows.
                Where a clip or a row has nothing of a stream, its learned vector stands there.

        Returns:
            (..., targets).
        """
        raise NotImplementedError
